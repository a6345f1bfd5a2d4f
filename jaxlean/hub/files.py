"""A model's files: where they are, in a local folder or the Hugging Face hub's cache, and how tensors are written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.errors import ModelError

# What is needed to load a model; weights in other formats stay where they are.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def locate(path_or_id: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder that holds the model's files, downloaded first if it is a hub id (without `weights`, only the others).

    Raises:
        ModelError: no such folder, no such id, or no network.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    looks_like_id = path_or_id.count("/") <= 1 and not path_or_id.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_id:
        raise ModelError(
            "no such model folder",
            where=folder.absolute(),
            wanted="a folder with config.json and *.safetensors, or a Hugging Face id (organisation/name)",
        )
    from huggingface_hub import snapshot_download

    wanted = [pattern for pattern in _WANTED if weights or pattern != "*.safetensors"]
    try:
        return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises a dozen unrelated types: not found, gated, offline, timeouts
        raise ModelError(
            f"the model {path_or_id!r} is neither a folder here nor reachable on the Hugging Face hub",
            where=folder.absolute(),
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name and the network; for gated models log in with `hf auth login`",
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: missing, or not JSON.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("a model file is missing", where=file, fix="is this a Hugging Face model folder?") from None
    except OSError as error:
        raise ModelError("a model file cannot be read", where=file, got=error.strerror) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError("not valid JSON", where=file, got=error) from None
    if not isinstance(value, dict):
        raise ModelError("not a JSON object", where=file, got=type(value).__name__)
    return value


def tensors_by_file(folder: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file it is in, for single files and sharded checkpoints.

    Raises:
        ModelError: no safetensors, a shard that the index names is missing, or a file that is cut short.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError("the index holds no weight_map", where=index)
        files = {name: folder / _inside(file, index) for name, file in weight_map.items()}
    elif single.exists():
        files = {}
    else:
        others = [file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in folder.glob(pattern)]
        raise ModelError(
            "no model.safetensors and no model.safetensors.index.json",
            where=folder,
            got=", ".join(others) or None,
            fix="convert it: transformers' save_pretrained writes safetensors" if others else None,
        )
    present: dict[str, Path] = {}
    for file in sorted(set(files.values()) or {single}):
        try:
            with safe_open(file, framework="numpy") as opened:
                present.update(dict.fromkeys(opened.keys(), file))
        except FileNotFoundError:
            raise ModelError("a file that the index names is missing", where=file) from None
        except (SafetensorError, OSError) as error:
            raise ModelError("not a whole safetensors file", where=file, got=error, fix="download it again") from None
    for name, file in files.items():
        if present.get(name) != file:
            raise ModelError(f"the index places {name} in a file that does not hold it", where=file)
    return present


def _inside(file: Any, index: Path) -> str:
    """The name of a file beside the index, and of no other place."""
    if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file:
        raise ModelError(
            "the index names a file that does not lie beside it", where=index, got=file, wanted="the name of a file"
        )
    return file


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray], **said: str) -> None:
    """Write a safetensors file, which whoever may read the files beside it may read: by itself only its owner could.

    Args:
        said: more of its metadata.

    Raises:
        OSError: the disk is full, or will not have it (safetensors has an error of its own for that).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    file.touch()
    mode = file.stat().st_mode
    try:
        save_file(dict(tensors), file, metadata={"format": "pt"} | said)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    file.chmod(mode)
