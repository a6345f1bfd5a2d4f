"""The ways to run a job on a target: mesh, microbatch, the base's form, what is recomputed.

The job keeps its meaning: a step sees the same sequences however they are spread, so that only its cost differs. What
is enumerated is what `finetune` can be told.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxlean.config import MeshSection, RunConfig
from jaxlean.config.section import Section
from jaxlean.errors import ConfigError
from jaxlean.models.decoder import DecoderConfig
from jaxlean.xla.mesh import AXES, ROWS
from jaxlean.xla.remat import Policy


@dataclass(frozen=True)
class Candidate:
    """One way to run a job.

    Args:
        mesh: devices along each axis, in the order of `xla.mesh.AXES`.
        microbatch: sequences that one device takes at a time.
        accumulation: microbatches of a step.
        dtype: of matrix products.
        quantization: form of the frozen base.
        remat: policy; None where it is still to be chosen.
    """

    mesh: tuple[int, ...]
    microbatch: int
    accumulation: int
    dtype: str
    quantization: str
    remat: Policy | None = None

    @property
    def axes(self) -> dict[str, int]:
        """Devices by axis."""
        return dict(zip(AXES, self.mesh, strict=True))

    @property
    def mesh_name(self) -> str:
        """The axes of several devices, for people: `fsdp=4 tensor=2`."""
        return " ".join(f"{axis}={size}" for axis, size in self.axes.items() if size > 1) or "one device"

    def settings(self) -> dict[str, Any]:
        """`section.key` -> value, as `finetune` is told it."""
        return {
            "model.dtype": self.dtype,
            "model.quantization": self.quantization,
            "train.per_device_train_batch_size": self.microbatch,
            "train.gradient_accumulation_steps": self.accumulation,
            "train.remat": list(self.remat) if isinstance(self.remat, tuple) else self.remat,
            **{f"mesh.{axis}": size for axis, size in self.axes.items()},
        }

    def apply(self, config: RunConfig) -> RunConfig:
        """The config of the job run this way."""
        changed = config.model_copy(deep=True)
        for key, value in self.settings().items():
            section, _, name = key.partition(".")
            if value is not None:
                setattr(getattr(changed, section), name, value)
        return changed

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "mesh": self.axes}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Candidate":
        """The inverse of `as_dict`, after JSON too."""
        remat = values["remat"]
        mesh = tuple(values["mesh"][axis] for axis in AXES)
        return Candidate(**{**values, "mesh": mesh, "remat": tuple(remat) if isinstance(remat, list) else remat})


def rows_per_step(config: RunConfig, num_devices: int = 1) -> int:
    """Sequences of one step, which a plan holds constant.

    Args:
        num_devices: of which an axis of -1 takes what is left: one device in a plan, for which other hardware is no
            other job; all that are there, where a mesh is only to be chosen for them.

    Raises:
        ConfigError: `train.sync: diloco` without a number of replicas, on which what is learned depends.
    """
    if config.train.sync == "diloco" and config.mesh.data < 2:
        raise ConfigError(
            "train.sync: diloco in a plan: how many replicas?", got=f"mesh.data={config.mesh.data}", fix="mesh.data=N"
        )
    sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
    left = max(num_devices // math.prod(size for size in sizes.values() if size > 0), 1)
    shards = math.prod(left if sizes[axis] == -1 else sizes[axis] for axis in ROWS)
    return config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps * shards


def is_set(section: Section, name: str) -> bool:
    """Whether a config says a setting itself; what it leaves out is open to be chosen."""
    return name in section.model_fields_set and getattr(section, name) != "auto"


def as_written(config: RunConfig, num_devices: int, *, rows: int, dtype: str) -> Candidate | None:
    """What the config itself says on so many devices; None where that is another job, or leaves the policy open.

    Args:
        rows: sequences of a step.
        dtype: of matrix products on the target.
    """
    sizes = [getattr(config.mesh, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    mesh = tuple(num_devices // known if size == -1 else size for size in sizes)
    train = config.train
    if math.prod(mesh) != num_devices or train.remat == "auto" or isinstance(train.remat, dict):
        return None
    shards = math.prod(size for axis, size in zip(AXES, mesh, strict=True) if axis in ROWS)
    if train.per_device_train_batch_size * train.gradient_accumulation_steps * shards != rows:
        return None
    remat = tuple(train.remat) if isinstance(train.remat, list) else train.remat
    return Candidate(
        mesh, train.per_device_train_batch_size, train.gradient_accumulation_steps, dtype, config.model.quantization,
        remat,
    )  # fmt: skip


def enumerate_candidates(
    config: RunConfig,
    shape: DecoderConfig,
    num_devices: int,
    *,
    rows: int,
    length: int,
    bases: Sequence[tuple[str, str]],
) -> Iterator[Candidate]:
    """Every way that the axes of a mesh, microbatches and forms of the base allow; what does not divide is left out.

    Args:
        config: of the job. The axes of the mesh that it sets itself stay as they are.
        shape: of its model.
        num_devices: of the target.
        rows: sequences of a step.
        length: tokens of a sequence.
        bases: (dtype of matrix products, form of the frozen base).
    """
    for mesh in _meshes(config.mesh, num_devices):
        axes = dict(zip(AXES, mesh, strict=True))
        shards = math.prod(axes[axis] for axis in ROWS)
        if rows % shards or length % axes["context"] or not _divides(shape, axes):
            continue
        own = rows // shards
        if config.task == "embed" and own % (2 * config.train.gradient_accumulation_steps):
            continue  # a pair lies on one device
        for microbatch in (n for n in range(own, 0, -1) if own % n == 0):
            # the pairs of a microbatch are each other's negatives: how many there are is part of the job
            if config.task == "embed" and own // microbatch != config.train.gradient_accumulation_steps:
                continue
            for dtype, form in bases:
                yield Candidate(mesh, microbatch, own // microbatch, dtype, form)


def _meshes(section: MeshSection, num_devices: int) -> Iterator[tuple[int, ...]]:
    """Sizes by axis that multiply to the devices. An axis that the config sets keeps its size."""
    fixed = {axis: size for axis in AXES if (size := getattr(section, axis)) >= 1 and is_set(section, axis)}
    free = [axis for axis in ("data", "fsdp", "context", "tensor") if axis not in fixed]
    rest, left = divmod(num_devices, math.prod(fixed.values()))
    if left:
        return
    for sizes in _factors(rest, len(free)):
        found = {**dict.fromkeys(AXES, 1), **fixed, **dict(zip(free, sizes, strict=True))}
        yield tuple(found[axis] for axis in AXES)


def _factors(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every tuple of `parts` numbers whose product is `number`."""
    if parts == 0:
        if number == 1:
            yield ()
        return
    for first in (n for n in range(1, number + 1) if number % n == 0):
        for rest in _factors(number // first, parts - 1):
            yield (first, *rest)


def _divides(shape: DecoderConfig, axes: dict[str, int]) -> bool:
    tensor, fsdp = axes["tensor"], axes["fsdp"]
    split: Sequence[int] = (shape.num_kv_heads, shape.intermediate_size)
    return all(n % tensor == 0 for n in split) and shape.hidden_size % fsdp == 0
