"""Parameters -> a Hugging Face folder that transformers, vLLM and jaxlean load."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean import tree
from jaxlean.errors import RunError
from jaxlean.hub.family import Family
from jaxlean.hub.load import Model

_BYTES_PER_FILE = 5 * 10**9


def write_model(model: Model, folder: Path, *, dtype: str | None = None, bytes_per_file: int = _BYTES_PER_FILE) -> None:
    """Write a model without adapters in Hugging Face format, tokenizer included.

    Nothing is left half-written: the folder appears when it is whole.

    Args:
        model: its parameters must hold no adapter (`adapt.lora.merge` folds them in).
        folder: must not exist or be empty.
        dtype: `float32` or `bfloat16` of the tensors; default: as they are held.
        bytes_per_file: larger models are split, with an index.

    Raises:
        RunError: the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError("the output folder is not empty", where=folder, fix="choose another, or remove it")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    held = np.dtype(dtype) if dtype is not None else np.dtype(model.dtype)
    _write_tensors(part, model.family, model.params, held, bytes_per_file)
    config = dict(model.hf_config) | {"dtype": held.name, "architectures": [_architecture(model.family.model_type)]}
    config.pop("torch_dtype", None)
    (part / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    if model.tokenizer_path is not None or model.folder is not None:
        model.tokenizer.save_pretrained(part)
    generation = model.folder / "generation_config.json" if model.folder is not None else None
    if generation is not None and generation.exists():
        shutil.copy(generation, part)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)


def tensors(family: Family, params: Mapping[str, Any], dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face name and host array of every parameter, layers taken apart, one at a time."""
    for path, leaf in tree.flatten(params).items():
        name = family.tensor(path)
        host = np.asarray(jax.device_get(leaf)).astype(dtype)
        rows = list(host) if "{}" in name else [host]
        for i, row in enumerate(rows):
            yield name.format(i), np.ascontiguousarray(row.T if path.endswith(".kernel") else row)


def _write_tensors(folder: Path, family: Family, params: tree.Tree, dtype: np.dtype, limit: int) -> None:
    from safetensors.numpy import save_file

    parts: list[dict[str, np.ndarray]] = [{}]
    files: list[list[str]] = []
    size = total = 0

    def close() -> None:
        save_file(parts[0], folder / f"part-{len(files)}", metadata={"format": "pt"})
        files.append(list(parts[0]))
        parts[0] = {}

    for name, array in tensors(family, params, dtype):
        if parts[0] and size + array.nbytes > limit:
            close()
            size = 0
        parts[0][name] = array
        size += array.nbytes
        total += array.nbytes
    close()
    if len(files) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(files):
        final = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{i}").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _architecture(model_type: str) -> str:
    # what `AutoModelForCausalLM` and vLLM look up: LlamaForCausalLM, Qwen2ForCausalLM
    return model_type[0].upper() + model_type[1:] + "ForCausalLM"
