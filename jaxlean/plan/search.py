"""The best ways to run a job on one target: bounded, ordered by estimate, and the foremost of them compiled.

Thousands of candidates become a handful of compilations: what cannot fit by any program is left out, the rest is tried
in the order of its estimated time, and each compilation corrects the estimates of the others.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

import jax

from jaxlean.config import RunConfig
from jaxlean.errors import UserError
from jaxlean.models.block_attention import SCOPE
from jaxlean.plan.analysis import Analysis, Guess
from jaxlean.plan.candidate import Candidate, as_written, enumerate_candidates, is_set, rows_per_step
from jaxlean.plan.compiled import Compiled, compile_candidate
from jaxlean.plan.remedy import remedy
from jaxlean.plan.target import Target, devices_of, missing
from jaxlean.platform import written_for
from jaxlean.run.job import is_base_quantized
from jaxlean.xla.mesh import AXES
from jaxlean.xla.precision import compute_dtype
from jaxlean.xla.work import as_one_kernel

# What is chosen: all that the config leaves open; or the mesh and the microbatch alone; or nothing, but the policy of
# `remat: auto`.
Ways = Literal["all", "spread", "own"]
# Compilations for a target, at most; and what another may take by estimate, of what fits, to be worth one: estimates
# tell ways to use a mesh apart better than meshes.
MOST = 4
_WORTH, _WORTH_ANOTHER_MESH = 0.97, 1.1
# Of the capacity: what is estimated below it fits, and needs no compiler to say so.
_SURELY = 0.7


@dataclass(frozen=True)
class Row:
    """A candidate on a target, and what became of it.

    Args:
        target: its name.
        candidate: None where there is none to speak of.
        status: `fits` (compiled), `too large` (compiled), `bound` (by arithmetic alone: no compiler here for it),
            `failed`, `nothing` (no mesh divides the job).
        memory, capacity: bytes of one device.
        step_seconds, exchange_seconds: estimated; the second is part of the first.
        flops: in a step, over all devices.
        note: what a reader should know.
        compile_seconds: that it took.
        as_written: it is the config's own, nothing chosen.
        remedy: what would make it fit.
        variant: of which of several configs it is, where there are several.
    """

    target: str
    status: str
    candidate: Candidate | None = None
    memory: float | None = None
    capacity: int | None = None
    step_seconds: float | None = None
    exchange_seconds: float | None = None
    flops: float | None = None
    note: str = ""
    compile_seconds: float = 0.0
    as_written: bool = False
    remedy: str = ""
    variant: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "candidate": self.candidate.as_dict() if self.candidate is not None else None}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Row":
        """The inverse of `as_dict`."""
        candidate = values["candidate"]
        return Row(**{**values, "candidate": None if candidate is None else Candidate.from_dict(candidate)})


def search(
    config: RunConfig,
    target: Target,
    *,
    length: int,
    rows: int | None = None,
    devices: list[Any] | None = None,
    vary_base: bool = True,
    ways: Ways = "all",
    most: int = MOST,
    skip: frozenset[str] = frozenset(),
    starting: Callable[[Candidate], None] = lambda candidate: None,
) -> Iterator[Row]:
    """The rows of a target, each as soon as it is known.

    Args:
        config: of the job.
        target: to run it on.
        length: tokens of a sequence.
        rows: sequences of a step; default: what the config says on one device.
        devices: to compile for; default: descriptions of the target's.
        vary_base: whether the base may be held in another form than the config says.
        ways: what may be chosen beside it. On a target that the config's mesh or microbatch does not divide among, they
            are chosen all the same.
        most: compilations.
        skip: `str` of candidates that are not to be compiled, since the compiler fails on them.
        starting: called before each compilation, so that who waits knows what for.
    """
    lacking = missing(target)
    job, note = for_platform(config, target, bounded=lacking is not None)
    if ways != "all":
        vary_base = False
        job.train.remat = job.train.remat  # what was at its default is set now, and so not to be chosen
    with written_for(target.platform), as_one_kernel(SCOPE) if note else nullcontext():
        # a bound needs no compiler: the host's device stands for the target's
        if devices is None:
            devices = devices_of(target) if lacking is None else jax.devices("cpu")[:1]
        rows = rows if rows is not None else rows_per_step(config)
        try:
            bases = _bases(job, target) if vary_base else [(_dtype(job), str(job.model.quantization))]
            guesses = _guesses(job, target, devices[0], bases, rows=rows, length=length)
            if ways == "own":
                guesses = _own(job, target.num_devices, guesses)
        except UserError as error:
            yield Row(target.name, "failed", note=_first_line(error))
            return
        capacity = target.capacity
        if not guesses:
            yield Row(target.name, "nothing", capacity=capacity, note="no mesh of these devices divides the job")
            return
        if lacking is not None:
            best = next((g for g in guesses if capacity is None or g.memory <= capacity), guesses[-1])
            yield _guessed(target, best, f"bound only: {lacking}")
            return
        if vary_base:
            yield from _written(job, target, devices, guesses, rows, length, skip, starting, note)
        yield from _compile_foremost(job, target, devices, guesses, length, most, skip, starting, note)


def _own(job: RunConfig, num_devices: int, guesses: list[Guess]) -> list[Guess]:
    """Those whose mesh and microbatch are the config's; where there is none, whose mesh is; or all."""
    sizes = [getattr(job.mesh, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    mesh = tuple(num_devices // known if size == -1 else size for size in sizes)
    spread = [guess for guess in guesses if guess.candidate.mesh == mesh]
    microbatch = job.train.per_device_train_batch_size
    return [guess for guess in spread if guess.candidate.microbatch == microbatch] or spread or guesses


def _written(
    job: RunConfig,
    target: Target,
    devices: list[Any],
    guesses: list[Guess],
    rows: int,
    length: int,
    skip: frozenset[str],
    starting: Callable[[Candidate], None],
    note: str,
) -> Iterator[Row]:
    """The config as it is written, where that may be too large: by how much it is, and what would mend it."""
    candidate = as_written(job, target.num_devices, rows=rows, dtype=_dtype(job))
    capacity = target.capacity
    if candidate is None or capacity is None or str(candidate) in skip:
        return
    own = [guess for guess in guesses if guess.candidate == candidate]
    if own and own[0].memory < _SURELY * capacity:
        return

    def compile_as(config: RunConfig, candidate: Candidate) -> Compiled:
        starting(candidate)
        return compile_candidate(config, target, devices, candidate, length=length)

    try:
        row = _row(target, candidate, compile_as(job, candidate), note)
        if row.status != "too large":
            return
        mends = remedy(job, target, devices[0], candidate, rows=rows, length=length, compile_as=compile_as)
        yield replace(row, as_written=True, remedy=mends)
    except UserError as error:
        yield Row(target.name, "failed", candidate, capacity=capacity, note=_first_line(error), as_written=True)
    except Exception as error:
        note = f"the compiler failed: {_first_line(error)}"
        yield Row(target.name, "failed", candidate, capacity=capacity, note=note, as_written=True)


def _compile_foremost(
    job: RunConfig,
    target: Target,
    devices: list[Any],
    guesses: list[Guess],
    length: int,
    most: int,
    skip: frozenset[str],
    starting: Callable[[Candidate], None],
    note: str,
) -> Iterator[Row]:
    capacity = target.capacity
    correction, speed, done, best = 1.0, 1.0, 0, None
    tried: set[str] = set(skip)
    meshes: set[tuple[int, ...]] = set()
    while done < most:
        open_ = [g for g in guesses if str(g.candidate) not in tried]
        if capacity is not None:
            open_ = [g for g in open_ if g.bound <= capacity and g.memory * correction <= capacity]
        if best is not None:
            worth = {g.candidate.mesh: best * (_WORTH if g.candidate.mesh in meshes else _WORTH_ANOTHER_MESH)
                     for g in open_}  # fmt: skip
            open_ = [g for g in open_ if g.seconds * speed < worth[g.candidate.mesh]]
        guess = next(iter(open_), None)
        if guess is None and best is None:
            # by estimate nothing fits (any more): the smallest has the last word
            rest = [g for g in guesses if str(g.candidate) not in tried]
            guess = min(rest, key=lambda g: g.memory, default=None)
        if guess is None:
            return
        tried.add(str(guess.candidate))
        meshes.add(guess.candidate.mesh)
        done += 1
        starting(guess.candidate)
        try:
            found = compile_candidate(job, target, devices, guess.candidate, length=length)
        except UserError as error:
            yield Row(target.name, "failed", guess.candidate, capacity=capacity, note=_first_line(error))
            continue
        except Exception as error:
            note = f"the compiler failed: {_first_line(error)}"
            yield Row(target.name, "failed", guess.candidate, capacity=capacity, note=note)
            continue
        row = _row(target, guess.candidate, found, note)
        if row.status == "fits":
            best = min(best or float("inf"), found.step_seconds)
            speed = found.step_seconds / guess.seconds
        correction = max(found.memory / guess.memory, 0.5) if found.fits else max(correction, 1.3)
        yield row


def _row(target: Target, candidate: Candidate, found: Compiled, note: str) -> Row:
    fits = found.fits and (target.capacity is None or found.memory <= target.capacity)
    return Row(
        target.name, "fits" if fits else "too large", candidate, found.memory, target.capacity, found.step_seconds,
        found.exchange_seconds, found.flops, note, found.compile_seconds,
    )  # fmt: skip


def _guessed(target: Target, guess: Guess, note: str) -> Row:
    return Row(
        target.name, "bound", guess.candidate, guess.memory, target.capacity, guess.seconds, None, None, note
    )  # fmt: skip


def _guesses(
    job: RunConfig, target: Target, device: Any, bases: list[tuple[str, str]], *, rows: int, length: int
) -> list[Guess]:
    """Every candidate with the policies worth a thought, the fastest first."""

    @cache
    def analysis(dtype: str, form: str, attention: str) -> Analysis:
        changed = {"dtype": dtype, "quantization": form, "attention": attention}
        own = job.model_copy(update={"model": job.model.model_copy(update=changed)})
        return Analysis(own, target, device, rows=rows, length=length)

    wanted = str(job.model.attention)
    # the kernel for TPUs takes whole sequences (`models.attention`)
    split = "block" if target.platform == "tpu" and wanted in ("auto", "splash") else wanted
    shape = analysis(*bases[0], wanted).outline.model.config
    found: list[Guess] = []
    for candidate in enumerate_candidates(job, shape, target.num_devices, rows=rows, length=length, bases=bases):
        attention = split if candidate.axes["context"] > 1 else wanted
        found += analysis(candidate.dtype, candidate.quantization, attention).guesses(candidate)
    return sorted(found, key=lambda guess: guess.seconds)


def _bases(job: RunConfig, target: Target) -> list[tuple[str, str]]:
    """(dtype of products, form of the frozen base) to choose from: what the config leaves open."""
    dtypes = [_dtype(job)]
    if target.platform == "cpu" and not is_set(job.model, "dtype"):
        dtypes = ["float32", "bfloat16"]  # which is faster is a matter of the processor
    frozen = job.lora is not None and job.model.architecture is None
    open_ = frozen and not is_set(job.model, "quantization") and not is_base_quantized(job)
    forms = ["none", "int8", "nf4"] if open_ else [str(job.model.quantization)]
    return [(dtype, form) for dtype in dtypes for form in forms]


def _dtype(job: RunConfig) -> str:
    return str(compute_dtype(job.model.dtype).name)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def for_platform(config: RunConfig, target: Target, *, bounded: bool) -> tuple[RunConfig, str]:
    """The config as the target runs it, and what had to be changed only for the plan.

    Args:
        bounded: nothing is compiled; the host's device, which stands for the target's, has none of its kernels.
    """
    job = config.model_copy(deep=True)
    if bounded:
        if job.model.attention in ("auto", "cudnn", "splash"):
            job.model.attention = "block"
        job.model.matmul = "default"
        return job, "attention: block stands in"
    if target.platform == "gpu" and job.model.attention in ("auto", "cudnn") and not _cudnn_here():
        job.model.attention = "block"
        return job, "attention: block stands in for cudnn, which is not installed here"
    return job, ""


def _cudnn_here() -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec("nvidia.cudnn") is not None
    except ModuleNotFoundError:
        return False
