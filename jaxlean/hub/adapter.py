"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT keeps one pair of matrices a layer, `[r, in]` and `[out, r]`; here they are stacked and transposed. Adapters of
different ranks or scales a layer, or on some layers only, are read into one stack: missing rank is zeros, which change
nothing. Format: github.com/huggingface/peft, docs/source/developer_guides/checkpoint.md.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean import codec, tree
from jaxlean.adapt.lora import beside, column_lengths
from jaxlean.config import LoraSection
from jaxlean.errors import ModelError
from jaxlean.hub.family import Family
from jaxlean.hub.files import read_json

_PREFIX = "base_model.model."
_PEFT_ALPHA = 8  # PEFT's own default, for a file that does not state it
# Our leaf -> the end of PEFT's tensor name.
_SUFFIXES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}


def write_adapter(folder: Path, family: Family, adapter: Mapping[str, Any], config: LoraSection, *, base: str) -> None:
    """Write adapter leaves, and read them back to be sure of what lies on the disk.

    Args:
        folder: replaced when everything is written.
        family: gives the module names.
        adapter: tree of `lora_a`, `lora_b`, `lora_scale` and perhaps `lora_magnitude` leaves.
        config: the variant that trained them.
        base: id or folder of the base model, for `base_model_name_or_path`.

    Raises:
        ModelError: what was read back is not what was written.
    """
    from safetensors.numpy import save_file

    leaves = {path: np.asarray(jax.device_get(leaf)) for path, leaf in tree.flatten(adapter).items()}
    tensors: dict[str, np.ndarray] = {}
    targets: set[str] = set()
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, leaf in leaves.items():
        module, name = path.rsplit(".", 1)
        theirs = family.modules[module]
        targets.add(theirs.rsplit(".", 1)[-1])
        for i, row in enumerate(leaf if "{}" in theirs else leaf[None]):
            if name == "lora_scale":
                rank = leaves[f"{module}.lora_a"].shape[-1]
                ranks[theirs.format(i)] = rank
                alphas[theirs.format(i)] = _alpha(float(row), rank, config.use_rslora)
            else:
                tensors[f"{_PREFIX}{theirs.format(i)}.{_SUFFIXES[name]}"] = np.ascontiguousarray(row.T)
    # The first module's, and what differs from it by name. A PiSSA adapter is written with twice its rank, and alpha
    # follows, so that the scale stays.
    r, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": config.lora_dropout,
        "bias": "none",
        "target_modules": sorted(targets),
        "inference_mode": True,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "modules_to_save": None,
        "trainable_token_indices": None,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
    }
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
    (part / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _check_read_back(part, family, leaves)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def read_adapter(folder: Path, family: Family, base: Mapping[str, Any]) -> tree.Tree:
    """Read an adapter's leaves, to be merged into the tree of its base.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        family: gives the module names.
        base: the base's parameters (or their shapes): says how many layers there are, and what fits.

    Returns:
        tree of `lora_a` [layers, in, r], `lora_b` [layers, r, out], `lora_scale` [layers] and, with DoRA,
        `lora_magnitude` [layers, out], float32.

    Raises:
        ModelError: not a LoRA adapter, one with parts that are not supported, or one that does not fit the base.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not folder.is_dir():
        raise ModelError(
            "no such adapter folder", where=folder, wanted="adapter_config.json and adapter_model.safetensors"
        )
    settings = read_json(folder / "adapter_config.json")
    file = folder / "adapter_model.safetensors"
    if settings.get("peft_type") != "LORA":
        raise ModelError("not a LoRA adapter", where=folder, got=settings.get("peft_type"))
    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise ModelError("an adapter file is missing", where=file) from None
    except (SafetensorError, OSError) as error:
        raise ModelError("not a whole safetensors file", where=file, got=error) from None
    kernels = codec.kernels(tree.flatten(base))
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name, array in tensors.items():
        module, layer, leaf = _parse(name, family, file)
        if module not in kernels:
            raise ModelError(f"an adapter for a module that the base does not have: {name}", where=file)
        found.setdefault(module, {}).setdefault(layer, {})[leaf] = array.astype(np.float32).T
    if not found:
        raise ModelError("the adapter holds no tensor", where=file)
    leaves: dict[str, np.ndarray] = {}
    for module, layers in found.items():
        leaves |= _stack(module, layers, codec.shape(kernels[module]), settings, family, file)
    if settings.get("use_dora"):
        _complete_magnitudes(leaves, kernels)
    return tree.unflatten(
        {path: beside(kernels[path.rpartition(".")[0]], jnp.asarray(leaf)) for path, leaf in leaves.items()}
    )


def _alpha(scale: float, r: int, use_rslora: bool) -> float:
    alpha = scale * (r**0.5 if use_rslora else r)
    # the scale was held in float32; the alpha that a person wrote is the round number beside it
    return float(round(alpha)) if abs(alpha - round(alpha)) <= 1e-6 * alpha else alpha


def _parse(name: str, family: Family, file: Path) -> tuple[str, int, str]:
    """Tensor name -> (our module, layer, our leaf)."""
    inner = name.removeprefix(_PREFIX)
    if inner == name:
        raise ModelError(f"an adapter tensor without PEFT's prefix: {name}", where=file, wanted=f"{_PREFIX}...")
    for leaf, suffix in _SUFFIXES.items():
        # some PEFT versions write lora_magnitude_vector.weight
        module = inner.removesuffix(".weight") if leaf == "lora_magnitude" else inner
        if module.endswith(f".{suffix}"):
            module = module.removesuffix(f".{suffix}")
            for ours, theirs in family.modules.items():
                match = re.fullmatch(re.escape(theirs).replace(r"\{\}", r"(\d+)"), module)
                if match:
                    return ours, int(match.group(1)) if match.groups() else 0, leaf
    raise ModelError(
        f"an adapter tensor that is not supported: {name}",
        where=file,
        wanted="LoRA or DoRA on linear layers",
        fix="merge modules_to_save and embedding adapters into the base with PEFT's merge_and_unload",
    )


def _stack(
    module: str,
    layers: dict[int, dict[str, np.ndarray]],
    kernel: tuple[int, ...],
    settings: dict[str, Any],
    family: Family,
    file: Path,
) -> dict[str, np.ndarray]:
    """The layers' matrices as one stack each; a layer without an adapter gets zeros."""
    stacked = "{}" in family.modules[module]
    num = kernel[0] if stacked else 1
    dim_in, dim_out = kernel[-2:]
    rank = max((parts["lora_a"].shape[-1] for parts in layers.values() if "lora_a" in parts), default=0)
    a = np.zeros((num, dim_in, rank), np.float32)
    b = np.zeros((num, rank, dim_out), np.float32)
    scales = np.ones((num,), np.float32)
    magnitude = np.full((num, dim_out), np.nan, np.float32)
    for layer, parts in layers.items():
        name = family.modules[module].format(layer)
        if layer >= num:
            raise ModelError(
                f"an adapter for a layer that the base does not have: {name}", where=file, wanted=f"{num} layers"
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
        a[layer, :, :r], b[layer, :r] = parts["lora_a"], parts["lora_b"]
        if "lora_magnitude" in parts:
            magnitude[layer] = parts["lora_magnitude"].reshape(-1)
        alpha = _pattern(settings.get("alpha_pattern"), name, settings.get("lora_alpha", _PEFT_ALPHA))
        scales[layer] = alpha / (r**0.5 if settings.get("use_rslora") else r)
    leaves = {"lora_a": a, "lora_b": b, "lora_scale": scales}
    if settings.get("use_dora"):
        leaves["lora_magnitude"] = magnitude
    return {f"{module}.{leaf}": value if stacked else value[0] for leaf, value in leaves.items()}


def _complete_magnitudes(leaves: dict[str, np.ndarray], kernels: Mapping[str, codec.Leaves]) -> None:
    """A layer without a DoRA adapter keeps the column lengths of its kernel, which changes nothing."""
    for path, magnitude in leaves.items():
        if path.endswith(".lora_magnitude") and np.isnan(magnitude).any():
            lengths = np.asarray(column_lengths(kernels[path.removesuffix(".lora_magnitude")]))
            leaves[path] = np.where(np.isnan(magnitude), lengths, magnitude)


def _pattern(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    # PEFT matches a key as a regex against the end of the module's name
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default


def _check_read_back(folder: Path, family: Family, leaves: Mapping[str, np.ndarray]) -> None:
    shapes: dict[str, Any] = {}
    for path, leaf in leaves.items():
        module, name = path.rsplit(".", 1)
        if name == "lora_a":
            out = leaves[f"{module}.lora_b"].shape[-1]
            shapes[f"{module}.kernel"] = jax.ShapeDtypeStruct((*leaf.shape[:-1], out), np.float32)
    back = tree.flatten(read_adapter(folder, family, tree.unflatten(shapes)))
    for path, leaf in leaves.items():
        same = path in back and back[path].shape == leaf.shape
        if not same or not np.allclose(back[path], leaf.astype(np.float32), rtol=1e-5, atol=0, equal_nan=True):
            raise ModelError(
                f"the adapter read back is not the one written: {path}", where=folder, fix="is the disk sound?"
            )
