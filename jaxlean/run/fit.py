"""`train.remat: auto` in a run: its memory budget, the step's arguments, and what to try where nothing fits."""

from collections.abc import Collection

import jax

from jaxlean import tree
from jaxlean.config import RunConfig
from jaxlean.run.job import Build, State, batch_shapes, is_base_quantized, tokens_at_a_time
from jaxlean.run.predict import workspace
from jaxlean.run.step_memory import local_bytes
from jaxlean.train.diloco import DilocoState
from jaxlean.xla.mesh import num_batch_shards
from jaxlean.xla.precision import compute_dtype
from jaxlean.xla.remat_auto import Choice, choose, device_budget, say_bytes

# Bytes of a matrix's element in a quantized base, with its scales (NF4: 64 elements share one byte of scale).
_QUANTIZED = {"int8": 1.01, "nf4": 0.52}


def fit(
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    build: Build,
    state: State,
    frozen: tree.Tree,
    rows: int,
    length: int,
    *,
    hidden: int,
    names: Collection[str],
    image: tuple[int, ...] | None = None,
) -> Choice:
    """Choose what to recompute so that the step fits into `train.memory_budget`, and compile it.

    Args:
        build: policy -> the jitted step.
        state, frozen: the step's first two arguments, on the mesh.
        rows, length: of all tokens of a step.
        hidden: size of the model's hidden states.
        names: the activations that it names.
        image: the shape of an image, of a model of images.

    Raises:
        RunError: it does not fit; says by how much, and which cuts would save that.
    """
    shapes = batch_shapes(config, rows, length, mesh, image)
    held = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (state, frozen))
    set_budget = config.train.memory_budget
    budget = set_budget if set_budget is not None else device_budget(mesh.devices.flat)
    budget -= workspace(mesh.devices.flat[0].platform, hidden, tokens=tokens_at_a_time(config, rows, length, mesh))
    sizes = {name: local_bytes(part) for name, part in
             (("trainable", state.trainable), ("optimizer", state.optimizer), ("frozen", frozen))}  # fmt: skip

    common = local_bytes((state.outer, state.momentum)) if isinstance(state, DilocoState) else 0

    def advice(needed: int) -> str:
        short = needed - budget
        return say_cuts(cuts(config, mesh.size, needed - common, short, **sizes), short)

    return choose(
        build,
        (*held, shapes),
        budget,
        names,
        shards=num_batch_shards(mesh) * mesh.shape["context"],
        advice=advice,
    )


def cuts(
    config: RunConfig, num_devices: int, needed: int, short: int, *, trainable: int, optimizer: int, frozen: int
) -> list[tuple[str, int]]:
    """What would make a step smaller that is already as small as recomputation makes it, in the order to try.

    Args:
        num_devices: of the mesh.
        needed: bytes that the step takes on one device.
        short: how many of these are too many; rows are split into no more microbatches than that asks for.
        trainable, optimizer, frozen: bytes of these on one device.

    Returns:
        (setting, bytes that it would save, about).
    """
    train, width = config.train, compute_dtype(config.model.dtype).itemsize
    gradients = trainable
    activations = max(needed - 2 * trainable - optimizer - frozen, 0)
    found: list[tuple[str, int]] = []
    if config.lora is None and config.model.architecture is None and trainable:
        # float32 masters, moments and gradients go; a base in the compute dtype stays
        found.append(("lora.r=16", trainable + gradients + optimizer - trainable * width // 4))
    if config.lora is not None and config.model.quantization == "none" and not is_base_quantized(config):
        for form, each in _QUANTIZED.items():
            found.append((f"model.quantization={form}", round(frozen * (1 - each / width))))
    elif config.lora is not None and config.model.quantization == "int8":
        found.append(("model.quantization=nf4", round(frozen * (1 - _QUANTIZED["nf4"] / _QUANTIZED["int8"]))))
    rows = train.per_device_train_batch_size
    if rows > 1:
        # several microbatches need a second tree of gradients to add up in
        second = gradients if train.gradient_accumulation_steps == 1 else 0
        splits = [(rows // parts, parts) for parts in range(2, rows + 1) if rows % parts == 0]
        saves = [max(activations * (rows - less) // rows - second, 0) for less, _ in splits]
        at = next((i for i, saved in enumerate(saves) if saved >= short), len(splits) - 1)
        less, more = splits[at][0], splits[at][1] * train.gradient_accumulation_steps
        found.append((
            f"train.per_device_train_batch_size={less} train.gradient_accumulation_steps={more}", saves[at]
        ))  # fmt: skip
    found.append((f"data.max_length={config.data.max_length // 2}", activations // 2))
    if train.optim in ("adamw", "lion", "sgd", "muon"):
        # two moments of a byte an element instead of 4 bytes each
        found.append(("train.optim=adamw_8bit", max(optimizer - trainable // 2, 0)))
    if num_devices > 1 and config.mesh.fsdp == 1 and config.train.sync == "step":
        whole = 2 * trainable + optimizer + frozen
        found.append((f"mesh.fsdp={num_devices}", whole - whole // num_devices))
    return [(setting, saved) for setting, saved in found if saved > 0]


def say_cuts(found: list[tuple[str, int]], short: int) -> str:
    """The cuts as a sentence; `short` is what is missing, in bytes."""
    # what saves next to nothing of it is no cut to try
    found = [(setting, saved) for setting, saved in found if saved >= short / 50]
    if not found:
        return "use a device with more memory"
    lines = [f"{setting} saves about {say_bytes(saved)}" + (" (enough)" if saved >= short else "")
             for setting, saved in found]  # fmt: skip
    alone = "" if any(saved >= short for _, saved in found) else "; none of them is enough alone"
    return "next, in this order: " + "; ".join(lines) + alone
