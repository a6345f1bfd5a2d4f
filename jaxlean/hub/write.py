"""Parameters -> a Hugging Face folder that transformers, vLLM and jaxlean load, quantized ones as `hub.compressed`."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean import codec, tree
from jaxlean.adapt import vocabulary
from jaxlean.errors import ModelError, RunError
from jaxlean.hub import compressed
from jaxlean.hub.files import write_tensors
from jaxlean.hub.load import Model
from jaxlean.hub.names import Names
from jaxlean.hub.read import stored_tensors
from jaxlean.hub.sentence import Sentence, read_sentence, write_sentence
from jaxlean.hub.task import is_headless

_BYTES_PER_FILE = 5 * 10**9
_BESIDE = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def write_model(model: Model, folder: Path, *, dtype: str | None = None, bytes_per_file: int = _BYTES_PER_FILE) -> None:
    """Write a model without adapters in Hugging Face format, tokenizer included.

    Nothing is left half-written: the folder appears when it is whole.

    Args:
        model: with no adapter beside its parameters (`adapt.lora.merge` folds them in).
        folder: must not exist or be empty.
        dtype: `float32` or `bfloat16` of the tensors; default: as they are held.
        bytes_per_file: larger models are split, with an index.

    Raises:
        ModelError: the model has an adapter, or is quantized in a way that is not shared (nf4).
        RunError: the folder holds something already.
    """
    adapter = next((p for p in tree.flatten(model.params) if ".lora_" in p or vocabulary.is_beside(p)), None)
    if adapter is not None:
        raise ModelError("a model with an adapter cannot be written", where=adapter, fix="merge the adapter first")
    scheme = None
    if codec.is_quantized(tree.flatten(model.params)):
        scheme = compressed.scheme_of(model.params, model.names, activations=model.matmul in ("stored", "int8"))
    if folder.exists() and any(folder.iterdir()):
        raise RunError("the output folder is not empty", where=folder, fix="choose another, or remove it")
    part = folder.resolve().with_name(f".{folder.resolve().name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(model, part, scheme, np.dtype(dtype) if dtype is not None else np.dtype(model.dtype), bytes_per_file)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.exists():
        folder.rmdir()
    part.rename(folder)


def _write(model: Model, part: Path, scheme: compressed.Scheme | None, held: np.dtype, bytes_per_file: int) -> None:
    """All files of a model, into a folder that is there."""
    _write_tensors(part, chain(tensors(model.names, model.params, held, scheme), _carried(model, held)), bytes_per_file)
    config = dict(model.hf_config) | {"dtype": held.name}
    config["architectures"] = config.get("architectures") or [model.family.architecture]
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)  # what was read packed (`hub.mxfp4`) is written wide
    if scheme is not None:
        beside = {name.removesuffix(".weight") for name, array in _carried(model, held) if array.ndim == 2}
        whole = replace(scheme, ignore=tuple(sorted({*scheme.ignore, *beside})))
        config["quantization_config"] = compressed.settings(whole)
    text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
    (part / "config.json").write_text(text, encoding="utf-8")
    if _has_tokenizer(model) and model.tokenizer is not None:
        model.tokenizer.save_pretrained(part)
    if getattr(model.config, "head", None) == "embed":
        length = read_sentence(model.folder).max_length if model.folder is not None else None
        said = Sentence(model.config.pooling, model.config.normalize, length)
        write_sentence(part, said, hidden_size=model.config.hidden_size, source=model.folder)
    files = [model.folder / name for name in _BESIDE] if model.folder is not None else []
    for file in files:
        if file.exists():
            shutil.copy(file, part)


def tensors(
    names: Names, params: Mapping[str, Any], dtype: np.dtype, scheme: compressed.Scheme | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face name and host array of every parameter, layers taken apart, one at a time.

    Args:
        names: of the parameters.
        params: of the model.
        dtype: of what is not quantized.
        scheme: of what is.
    """
    leaves = tree.flatten(params)
    packed = {module: held for module, held in codec.kernels(leaves).items() if "kernel" not in held}
    for module, held in packed.items():
        assert scheme is not None, "quantized kernels have a scheme"
        own = jax.device_get(held)
        for index, name in names.tensors(f"{module}.kernel", codec.shape(held)):
            part = {leaf: value[index] for leaf, value in own.items()}
            yield from compressed.tensors(name.removesuffix(".weight"), part, scheme)
    for path, leaf in leaves.items():
        if path.rpartition(".")[0] in packed and path.rpartition(".")[2].startswith("kernel_"):
            continue
        host = np.asarray(jax.device_get(leaf))
        axes = names.axes(path, host.ndim - names.leading(path))
        for index, name in names.tensors(path, host.shape):
            # tensor by tensor: all layers' experts are one leaf, as large as most of the model
            turned = host[index].astype(dtype).transpose(np.argsort(axes))
            yield name, np.ascontiguousarray(turned).reshape(names.on_file(path, turned.shape))


def _carried(model: Model, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors of the files that the model came from, which it does not compute with."""
    from safetensors import safe_open

    family = model.family
    there = is_headless(model.config) or family.classifier is not None
    if not family.carried or not there or model.folder is None:
        return
    for name, stored in stored_tensors(model.folder, family).items():
        short = name.removeprefix(family.prefix)
        if any(re.search(pattern, short) for pattern in family.carried):
            with safe_open(stored.file, framework="numpy") as file:
                found = file.get_tensor(stored.name)
                yield short, found.astype(dtype) if np.issubdtype(found.dtype, np.floating) else found


def _write_tensors(folder: Path, named: Iterable[tuple[str, np.ndarray]], limit: int) -> None:
    files: list[list[str]] = []
    waiting: dict[str, np.ndarray] = {}
    size = total = 0

    def close() -> None:
        write_tensors(folder / f"part-{len(files)}", waiting)
        files.append(list(waiting))
        waiting.clear()

    for name, array in named:
        if waiting and size + array.nbytes > limit:
            close()
            size = 0
        waiting[name] = array
        size += array.nbytes
        total += array.nbytes
    close()
    if len(files) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    # how many files there are, and so their names, is known only now
    weight_map: dict[str, str] = {}
    for i, names in enumerate(files):
        final = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"part-{i}").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _has_tokenizer(model: Model) -> bool:
    """Whether there is one to write: a folder of weights alone is a model too."""
    if model.tokenizer_path is not None or "tokenizer" in vars(model):
        return True
    return model.folder is not None and any((model.folder / name).exists() for name in _TOKENIZER_FILES)
