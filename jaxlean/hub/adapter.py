"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT keeps one pair of matrices a layer, `[r, in]` and `[out, r]`; here they are stacked and transposed. Adapters of
different ranks or scales a layer, or on some layers only, are read into one stack: missing rank is zeros, which change
nothing. Format: github.com/huggingface/peft, docs/source/developer_guides/checkpoint.md.
"""

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean import codec, tree
from jaxlean.adapt.lora import beside, column_lengths
from jaxlean.adapt.vocabulary import IDS, TABLE, TABLES, is_beside
from jaxlean.config import LoraSection
from jaxlean.errors import ModelError
from jaxlean.hub import expert_adapter, token_adapter
from jaxlean.hub.adapter_file import (
    PREFIX,
    SETTINGS,
    SUFFIXES,
    TENSORS,
    alpha_of,
    read_settings,
    read_tensors,
    scale_of,
)
from jaxlean.hub.family import LEAVES
from jaxlean.hub.files import write_tensors
from jaxlean.hub.head import PEFT_TASKS, saved_modules
from jaxlean.hub.names import Index, Names


def write_adapter(
    folder: Path,
    names: Names,
    adapter: Mapping[str, Any],
    config: LoraSection | None,
    *,
    base: str,
    task: str = "generate",
    settings: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    trained_over: Mapping[str, str] | None = None,
) -> None:
    """Write adapter leaves, and read them back to be sure of what lies on the disk.

    Args:
        folder: replaced when everything is written.
        names: of the base.
        adapter: tree of `lora_a`, `lora_b`, `lora_scale` and perhaps `lora_magnitude` leaves; rows of new tokens
            (`adapt.vocabulary`); and what trained whole beside them, such as a task's head (PEFT's `modules_to_save`).
        config: the variant that trained them; None where there are rows of new tokens alone.
        base: id or folder of the base model, for `base_model_name_or_path`.
        task: what the model does, for `task_type`.
        settings: a `config.json` to lie beside: where there are labels, it names them.
        tokenizer: to lie beside, where it has new tokens.
        trained_over: how the base was loaded, where the adapter is more than an addition to it (`trained_over`).

    Raises:
        ModelError: what was read back is not what was written.
    """
    names = names.of_adapters
    every = {path: np.asarray(jax.device_get(leaf)) for path, leaf in tree.flatten(adapter).items()}
    alone = token_adapter.is_alone(every)
    rows = token_adapter.write(every, names, alone=alone)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in rows.tensors.items()}
    # PEFT's classes of tasks call a model with tokens; of one of images it wants no name
    task_type = PEFT_TASKS[task] if names.family.classifier is None else None
    if alone:
        stated = token_adapter.alone(rows, base=base, task_type=task_type)
    else:
        assert config is not None, "LoRA has settings"
        more, stated = _lora(every, names, config)
        tensors |= more
        stated |= {"base_model_name_or_path": base, "task_type": task_type}
        stated["trainable_token_indices"] = rows.indices or None
    part = folder.resolve().with_name(f".{folder.resolve().name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    said = {f"jaxlean.{key}": value for key, value in (trained_over or {}).items()}
    write_tensors(part / TENSORS, tensors, **said)
    (part / SETTINGS).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    if settings is not None:
        text = json.dumps(dict(settings), indent=2, sort_keys=True, default=str) + "\n"
        (part / "config.json").write_text(text, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(part)
    _check_read_back(part, names, every)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _lora(
    every: Mapping[str, np.ndarray], names: Names, config: LoraSection
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors by name, what the config says of them) of LoRA, and of what trained whole beside it."""
    leaves = {path: leaf for path, leaf in every.items() if ".lora_" in path}
    whole = {
        path: leaf.astype(np.float32) for path, leaf in every.items() if path not in leaves and not is_beside(path)
    }
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    routers: list[str] = []
    for path, leaf in leaves.items():
        module, name = path.rsplit(".", 1)
        if expert_adapter.is_of_experts(module):
            continue
        for index in np.ndindex(leaf.shape[: names.leading(f"{module}.kernel")]):
            theirs, own = names.name(module, *index), leaf[index]
            if module.endswith(".router"):  # to PEFT a parameter, not a module
                routers.append(theirs)
            if name == "lora_scale":
                ranks[theirs] = leaves[f"{module}.lora_a"].shape[-1]
                alphas[theirs] = alpha_of(float(own), ranks[theirs], config.use_rslora)
            else:
                # a convolution of 1x1 is one to PEFT too: its matrices have two more dims of 1
                ones = names.ones(f"{module}.kernel") if own.ndim == 2 else ()
                tensors[f"{PREFIX}{theirs}.{SUFFIXES[name]}"] = np.ascontiguousarray(np.expand_dims(own.T, ones))
    for path, leaf in whole.items():
        order = np.argsort(names.axes(path, leaf.ndim))
        tensors[PREFIX + names.tensor(path)] = np.ascontiguousarray(leaf.transpose(order))
    saved = saved_modules([names.module(path.rpartition(".")[0]) for path in whole])
    linear = [name for name in ranks if name not in routers]
    parameters = {f"{router}.weight": router for router in routers}
    for name in parameters.values():
        ranks[f"{name}.weight"], alphas[f"{name}.weight"] = ranks.pop(name), alphas.pop(name)
    for wrapped in expert_adapter.write(leaves, names):
        tensors |= {f"{PREFIX}{name}": tensor for name, tensor in wrapped.tensors.items()}
        ranks[wrapped.parameter] = wrapped.rank
        alphas[wrapped.parameter] = alpha_of(wrapped.scale, wrapped.rank, config.use_rslora)
        parameters[wrapped.parameter] = wrapped.parameter
    # The first module's, and what differs from it by name. A PiSSA adapter is written with twice its rank, and alpha
    # follows, so that the scale stays.
    r, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return tensors, {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": config.lora_dropout,
        "bias": "none",
        "target_modules": _target_modules(names, linear),
        "target_parameters": sorted(parameters) or None,
        "inference_mode": True,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "modules_to_save": saved or None,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "fan_in_fan_out": any(names.axes(path, 2) == (0, 1) for path in _kernels_of(leaves)),
        "init_lora_weights": True,
        "layers_to_transform": None,
    }


def trained_over(folder: Path) -> dict[str, Any]:
    """How a base is to be loaded that an adapter is more than an addition to: arguments of `hub.load.load`.

    An adapter that was rounded with its base (`lora.quantization_aware`), or kept its zeros (`train.keep_zeros`), is
    nothing to an other base; its file's metadata say it. Empty for a plain one, and for one from elsewhere.

    Raises:
        ModelError: there is no adapter, or its file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    read_settings(folder)
    file = folder / TENSORS
    if not file.exists():
        return {}  # `read_adapter` says what is wrong
    try:
        with safe_open(file, framework="numpy") as opened:
            said = opened.metadata() or {}
    except SafetensorError:
        return {}
    return {key.removeprefix("jaxlean."): value for key, value in said.items() if key.startswith("jaxlean.")}


def read_adapter(folder: Path, names: Names, base: Mapping[str, Any]) -> tree.Tree:
    """Read an adapter's leaves, to be merged into the tree of its base; those of `modules_to_save` replace the base's.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        names: of the base.
        base: the base's parameters (or their shapes): says how many layers there are, and what fits.

    Returns:
        tree of `lora_a` [layers, in, r], `lora_b` [layers, r, out], `lora_scale` [layers] and, with DoRA,
        `lora_magnitude` [layers, out], float32; rows of new tokens; and the parameters of `modules_to_save`.

    Raises:
        ModelError: not a LoRA adapter, one with parts that are not supported, or one that does not fit the base.
    """
    settings, tensors = read_tensors(folder)
    file = folder / TENSORS
    held = tree.flatten(base)
    kernels = codec.kernels(held)
    names = _spoken(tensors, names, kernels)
    bare = {name.removeprefix(PREFIX): array for name, array in tensors.items()}
    rows = token_adapter.take(bare, settings, names, held, file)
    tensors = {name: array for name, array in tensors.items() if name.removeprefix(PREFIX) in bare}
    found: dict[str, dict[Index, dict[str, np.ndarray]]] = {}
    whole = _whole(tensors, names, held, file) if settings.get("modules_to_save") else {}
    parts: expert_adapter.Parts = {}
    for name, array in tensors.items():
        if name in whole or expert_adapter.collect(name.removeprefix(PREFIX), array, parts):
            continue
        module, index, leaf = _parse(name, names, kernels, file)
        if module not in kernels:
            raise ModelError(f"an adapter for a module that the base does not have: {name}", where=file)
        ones = names.ones(f"{module}.kernel")
        if array.ndim == 2 + len(ones) and all(array.shape[dim] == 1 for dim in ones):
            array = array.squeeze(ones)
        found.setdefault(module, {}).setdefault(index, {})[leaf] = array.astype(np.float32).T
    if not found and not parts and not rows:
        raise ModelError("the adapter holds no tensor", where=file)
    leaves: dict[str, np.ndarray] = {}
    for module, layers in found.items():
        leaves |= _stack(module, layers, codec.shape(kernels[module]), settings, names, file)
    leaves |= expert_adapter.read(parts, names, kernels, settings, lambda name, r: scale_of(settings, name, r), file)
    both = {TABLES[path][0].rpartition(".")[0] for path in rows.keys() & TABLES.keys()} & {
        path.rpartition(".")[0] for path in leaves
    }
    if both:
        raise ModelError(
            "the adapter has both LoRA matrices and rows of tokens of one module, which do not go together", where=file,
            got=", ".join(names.module(module) for module in sorted(both)),
        )  # fmt: skip
    if settings.get("use_dora"):
        _complete_magnitudes(leaves, kernels)
    placed = {path: beside(kernels[path.rpartition(".")[0]], jnp.asarray(leaf)) for path, leaf in leaves.items()}
    placed |= {path: beside({"": held.get(path, held[TABLE])}, jnp.asarray(leaf)) for path, leaf in rows.items()}
    return tree.unflatten(placed | {path: beside({"": held[path]}, jnp.asarray(leaf)) for path, leaf in whole.values()})


def room(folder: Path, names: Names) -> int:
    """How many tokens a base must have room for, for the adapter in a folder to fit; 0 where it has no rows of tokens.

    Raises:
        ModelError: no adapter, or a broken file.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / TENSORS
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = {name.removeprefix(PREFIX): tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return 0  # `read_adapter` says what is wrong
    return token_adapter.room(read_settings(folder), shapes, names.of_adapters)


def _whole(
    tensors: Mapping[str, np.ndarray], names: Names, base: Mapping[str, Any], file: Path
) -> dict[str, tuple[str, np.ndarray]]:
    """Tensor name -> (our path, float32 array) of what trained whole, and lies in no stack of layers."""
    plain = [path for path in base if path.rpartition(".")[2] in LEAVES and not names.leading(path)]
    paths = {PREFIX + names.tensor(path): path for path in plain}
    found: dict[str, tuple[str, np.ndarray]] = {}
    for name in paths.keys() & tensors.keys():
        path, array = paths[name], tensors[name].astype(np.float32)
        leaf = array.transpose(names.axes(path, array.ndim))
        if leaf.shape != tuple(base[path].shape):
            raise ModelError(
                f"a saved module that does not fit its base: {name}", where=file, got=leaf.shape,
                wanted=tuple(base[path].shape), fix="data.labels must name the labels that the adapter was trained on",
            )  # fmt: skip
        found[name] = path, leaf
    return found


def _kernels_of(leaves: Mapping[str, Any]) -> list[str]:
    return [path.replace(".lora_a", ".kernel") for path in leaves if path.endswith(".lora_a")]


def _target_modules(names: Names, adapted: Sequence[str]) -> list[str]:
    """PEFT's names of the adapted modules: their last words where these mean nothing else, or whole names.

    PEFT adapts every module whose name ends in one of them.
    """
    whole = set(adapted)
    every = names.every()
    found: set[str] = set()
    for template, own in every.items():
        here = whole.intersection(own)
        if not here:
            continue
        words = template.rsplit("{}", 1)[-1].strip(".").split(".")
        others = [name for other, these in every.items() for name in these if other != template and name not in whole]
        tails = (".".join(words[at:]) for at in range(len(words) - 1, -1, -1))
        tail = next((tail for tail in tails if not any(f".{name}".endswith(f".{tail}") for name in others)), None)
        found.update([tail] if tail is not None and len(here) == len(own) else here)
    return sorted(found)


def _spoken(tensors: Collection[str], names: Names, kernels: Mapping[str, Any]) -> Names:
    """The names that an adapter has: those that modules have in transformers now, or those of files, which they had."""
    modules = {re.sub(r"\.lora_.*", "", name.removeprefix(PREFIX)) for name in tensors}
    return max((names.of_adapters, names), key=lambda one: sum(one.find(m, kernels) is not None for m in modules))


def _parse(name: str, names: Names, kernels: Mapping[str, Any], file: Path) -> tuple[str, Index, str]:
    """Tensor name -> (our module, its index in the leading dims, our leaf)."""
    inner = name.removeprefix(PREFIX)
    if inner == name:
        raise ModelError(f"an adapter tensor without PEFT's prefix: {name}", where=file, wanted=f"{PREFIX}...")
    for leaf, suffix in SUFFIXES.items():
        # some PEFT versions write lora_magnitude_vector.weight
        module = inner.removesuffix(".weight") if leaf == "lora_magnitude" else inner
        if module.endswith(f".{suffix}"):
            found = names.find(module.removesuffix(f".{suffix}"), kernels)
            if found is not None:
                return *found, leaf
    raise ModelError(
        f"an adapter tensor that is not supported: {name}",
        where=file,
        wanted="LoRA or DoRA on linear layers",
        fix="merge saved layers and embedding adapters into the base with PEFT's merge_and_unload",
    )


def _stack(
    module: str,
    parts_of: dict[Index, dict[str, np.ndarray]],
    kernel: tuple[int, ...],
    settings: dict[str, Any],
    names: Names,
    file: Path,
) -> dict[str, np.ndarray]:
    """The layers' matrices as one stack each; a layer without an adapter gets zeros."""
    *leading, dim_in, dim_out = kernel
    rank = max((parts["lora_a"].shape[-1] for parts in parts_of.values() if "lora_a" in parts), default=0)
    a = np.zeros((*leading, dim_in, rank), np.float32)
    b = np.zeros((*leading, rank, dim_out), np.float32)
    scales = np.ones(leading, np.float32)
    magnitude = np.full((*leading, dim_out), np.nan, np.float32)
    for index, parts in parts_of.items():
        name = names.name(module, *index)
        if any(i >= num for i, num in zip(index, leading, strict=True)):
            raise ModelError(
                f"an adapter for a layer that the base does not have: {name}", where=file, wanted=f"{leading[0]} layers"
            )
        if "lora_a" not in parts or "lora_b" not in parts:
            raise ModelError(f"lora_A or lora_B is missing: {name}", where=file)
        r = parts["lora_a"].shape[-1]
        if parts["lora_a"].shape != (dim_in, r) or parts["lora_b"].shape != (r, dim_out):
            raise ModelError(
                f"an adapter that does not fit its base: {name}",
                where=file,
                got=f"lora_A {parts['lora_a'].T.shape}, lora_B {parts['lora_b'].T.shape}",
                wanted=f"lora_A {(r, dim_in)}, lora_B {(dim_out, r)}",
            )
        a[index][:, :r], b[index][:r] = parts["lora_a"], parts["lora_b"]
        if "lora_magnitude" in parts:
            magnitude[index] = parts["lora_magnitude"].reshape(-1)
        # to PEFT a router is a parameter, and patterns name it so
        stated = f"{name}.weight" if module.endswith(".router") and settings.get("target_parameters") else name
        scales[index] = scale_of(settings, stated, r)
    leaves = {"lora_a": a, "lora_b": b, "lora_scale": scales}
    if settings.get("use_dora"):
        leaves["lora_magnitude"] = magnitude
    return {f"{module}.{leaf}": value for leaf, value in leaves.items()}


def _complete_magnitudes(leaves: dict[str, np.ndarray], kernels: Mapping[str, codec.Leaves]) -> None:
    """A layer without a DoRA adapter keeps the column lengths of its kernel, which changes nothing."""
    for path, magnitude in leaves.items():
        if path.endswith(".lora_magnitude") and np.isnan(magnitude).any():
            kernel = kernels[path.removesuffix(".lora_magnitude")]
            if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in kernel.values()):
                continue  # of a base that is shapes alone its own shape is enough
            lengths = np.asarray(column_lengths(kernel))
            leaves[path] = np.where(np.isnan(magnitude), lengths, magnitude)


def _check_read_back(folder: Path, names: Names, leaves: Mapping[str, np.ndarray]) -> None:
    shapes: dict[str, Any] = {}
    for path, leaf in leaves.items():
        module, name = path.rsplit(".", 1)
        if path in TABLES:
            table, dim = TABLES[path]
            size = (int(leaves[IDS].max()) + 1, leaf.shape[1])
            shapes[table] = jax.ShapeDtypeStruct(size if dim == 0 else size[::-1], np.float32)
        elif not name.startswith("lora_") and path != IDS:
            shapes[path] = jax.ShapeDtypeStruct(leaf.shape, np.float32)
        if name == "lora_a":
            out = leaves[f"{module}.lora_b"].shape[-1]
            for own in expert_adapter.in_one_parameter(module):
                shapes[f"{own}.kernel"] = jax.ShapeDtypeStruct((*leaf.shape[:-1], out), np.float32)
    back = tree.flatten(read_adapter(folder, names, tree.unflatten(shapes)))
    for path, leaf in leaves.items():
        module = path.rpartition(".")[0]
        if expert_adapter.is_of_experts(module):
            if not expert_adapter.same(leaves, back, module):
                raise ModelError(
                    f"the adapter read back is not the one written: {module}", where=folder, fix="is the disk sound?"
                )
            continue
        same = path in back and back[path].shape == leaf.shape
        if not same or not np.allclose(back[path], leaf.astype(np.float32), rtol=1e-5, atol=0, equal_nan=True):
            raise ModelError(
                f"the adapter read back is not the one written: {path}", where=folder, fix="is the disk sound?"
            )
