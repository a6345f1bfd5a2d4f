"""One candidate compiled for its target, and what the compiler says of it; kept on disk, for the next plan."""

import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlean.config import RunConfig
from jaxlean.cost.price import num_vcpus
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.target import Target
from jaxlean.run import predict
from jaxlean.run.job import Outline, copies, outline, tokens_at_a_time
from jaxlean.run.rounds import Rounds
from jaxlean.train.step import UPDATE
from jaxlean.xla import hlo
from jaxlean.xla.compile import user_cache_folder
from jaxlean.xla.mesh import check_axes, make_mesh
from jaxlean.xla.remat_auto import compile_within
from jaxlean.xla.work import count, kept_bytes, repeated, scope_of_kernel

# What a compiled program is a function of beside the job: their releases, and our own code.
_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
# What an entry of the hardware table says beside what the device does.
_PRICES = {"usd_per_hour", "usd_per_hour_spot", "per", "source", "skypilot"}


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a candidate.

    Args:
        memory: bytes that one device needs; with `fits` False, what the compiler says that it would.
        fits: whether the target's compiler found room for it (only those of TPUs look).
        work_seconds, exchange_seconds: of a step, estimated.
        flops: of matrix products in a step, over all devices, recomputation included.
        sent: bytes that one device sends in a step.
        collectives: in a step.
        compile_seconds: what compiling took here.
        cached: from an earlier plan.
    """

    memory: int
    fits: bool
    work_seconds: float
    exchange_seconds: float
    flops: float
    sent: float
    collectives: int
    compile_seconds: float
    cached: bool = False

    @property
    def step_seconds(self) -> float:
        """Of one step, estimated."""
        return self.work_seconds + self.exchange_seconds


def compile_candidate(
    config: RunConfig, target: Target, devices: list[Any], candidate: Candidate, *, length: int, cache: bool = True
) -> Compiled:
    """Compile the step that `finetune` would run.

    Args:
        config: of the job.
        target: what it is compiled for.
        devices: as `devices_of(target)` gives them.
        candidate: with its policy.
        length: tokens of a sequence.
        cache: keep the result on disk, and take one from there.

    Raises:
        UserError: the job cannot be run so.
        Exception: what the compiler raises, but for a want of memory.
    """
    file = _file(config, target, candidate, length) if cache else None
    if file is not None and (known := _read(file)) is not None:
        return known
    started = time.perf_counter()
    job = candidate.apply(config)
    mesh = make_mesh(job.mesh, devices)
    made = outline(job, mesh, length=length)
    _check(made, mesh)
    assert candidate.remat is not None
    traced = made.build(candidate.remat).trace(*made.arguments)
    tokens = tokens_at_a_time(job, made.rows, length, mesh)
    more = predict.workspace(target.platform, made.model.config.hidden_size, tokens=tokens)
    program, memory = compile_within(traced, (target.capacity or 2**62) - more)
    memory += more
    with repeated(UPDATE, copies(made.state, mesh)):
        work, kept = count(traced.jaxpr.jaxpr), kept_bytes(traced.jaxpr.jaxpr)
    read = hlo.Program()
    if program is not None:
        # the loss goes through its chunks in a loop that ends where no token carries loss: here, never early
        read = hlo.read(program.as_text() or "", unknown=1)
    took = predict.of_program(target.machine, work, kept, read, cycle_seconds(target, devices))
    rounds = Rounds(job, made.outer if program is not None else None, made.state, 1)
    between = rounds.seconds(target.machine)
    found = Compiled(
        max(memory, rounds.memory_bytes), program is not None, took.work + between.work,
        took.exchange + between.exchange, float(work.total_flops), read.bytes + rounds.sent_bytes, read.count,
        time.perf_counter() - started,
    )  # fmt: skip
    if file is not None:
        _write(file, found)
    return found


def cycle_seconds(target: Target, devices: list[Any]) -> float | None:
    """How long a cycle of a TPU's compiler is; None where the compiler estimates none.

    The compiler tells no clock. A large product, which is known to reach 88 % of a TPU's peak, tells it.
    """
    if target.platform != "tpu":
        return None
    peak = target.device.flops_per_second("bfloat16")
    if peak is None:
        return None
    size = 8192
    where = jax.sharding.SingleDeviceSharding(devices[0])
    matrix = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=where)
    cycles = hlo.read(jax.jit(jnp.matmul).lower(matrix, matrix).compile().as_text() or "").cycles
    return 2 * size**3 / (0.88 * peak) / cycles if cycles else None


def _check(made: Outline, mesh: jax.sharding.Mesh) -> None:
    from jaxlean import tree

    shapes = {path: tuple(leaf.shape) for path, leaf in tree.flatten(made.model.params).items()}
    check_axes(mesh, shapes, num_kv_heads=made.model.config.num_kv_heads, length=made.length)


def _file(config: RunConfig, target: Target, candidate: Candidate, length: int) -> Path | None:
    """Where the result of just this compilation is kept; None where nothing is."""
    setting = config.compilation_cache
    if setting is False:
        return None
    try:
        folder = user_cache_folder() if setting is True else Path(setting).expanduser().absolute()
    except RuntimeError:
        return None  # a user without a home
    parts = {
        "job": {name: getattr(config, name).model_dump(mode="json") for name in ("model", "train")},
        "lora": None if config.lora is None else config.lora.model_dump(mode="json"),
        "architecture": _architecture(config),
        "task": [config.task, config.data.labels, config.data.text_column],
        "candidate": candidate.as_dict(),
        "target": target.device.model_dump(mode="json", exclude=_PRICES),
        "shape": target.shape,
        "cores": num_vcpus() if target.platform == "cpu" else None,
        "kernel": scope_of_kernel(),
        "length": length,
        "versions": _versions(),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return folder / "plan" / f"{key}.json"


def _architecture(config: RunConfig) -> str:
    """The model's config.json, as text: a folder may have changed under its name."""
    file = Path(config.model.path or "") / "config.json"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


@lru_cache
def _versions() -> dict[str, str]:
    package = Path(__file__).parents[1]
    ours = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(package.rglob("*.py"))))
    found = {"jaxlean": ours.hexdigest()}
    for name in _COMPILERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _read(file: Path) -> Compiled | None:
    try:
        return Compiled(**json.loads(file.read_text(encoding="utf-8")), cached=True)
    except (OSError, ValueError, TypeError):
        return None  # not there, or not whole: it is written anew


def _write(file: Path, found: Compiled) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as part:
            json.dump({key: value for key, value in asdict(found).items() if key != "cached"}, part)
        os.replace(part.name, file)  # whole or not at all: several processes plan at once
    except OSError:
        return  # a cache that cannot be written costs the next plan its time, nothing else
