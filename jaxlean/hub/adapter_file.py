"""What lies in the folder of a PEFT adapter, before anything is known of a base: its settings, tensors and scales.

Format: github.com/huggingface/peft, docs/source/developer_guides/checkpoint.md.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.errors import ModelError
from jaxlean.hub import token_adapter
from jaxlean.hub.files import read_json

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Our leaf -> the end of PEFT's tensor name.
SUFFIXES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
_ALPHA = 8  # PEFT's own default, for a file that does not state it


def read_settings(folder: Path) -> dict[str, Any]:
    """The `adapter_config.json` of an adapter.

    Raises:
        ModelError: there is none; names the folder in this one that has one, as a run's has.
    """
    wanted = f"{SETTINGS} and {TENSORS}"
    if not folder.is_dir():
        raise ModelError("no such adapter folder", where=folder, wanted=wanted)
    if not (folder / SETTINGS).exists():
        inside = sorted(file.parent for file in folder.glob(f"*/{SETTINGS}"))
        meant = f"did you mean {inside[0]}?" if inside else None
        raise ModelError("a folder without an adapter", where=folder, wanted=wanted, fix=meant)
    return read_json(folder / SETTINGS)


def read_tensors(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(settings, tensors by name) of an adapter.

    Raises:
        ModelError: there is none, it is not LoRA, or its file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings, file = read_settings(folder), folder / TENSORS
    if settings.get("peft_type") not in ("LORA", token_adapter.ALONE):
        raise ModelError("not a LoRA adapter", where=folder, got=settings.get("peft_type"))
    try:
        return settings, load_file(file)
    except FileNotFoundError:
        others = [other.name for kind in ("*.bin", "*.pt", "*.pth") for other in folder.glob(kind)]
        fix = "convert it: PEFT's save_pretrained writes safetensors; pickles are not read" if others else None
        raise ModelError("an adapter file is missing", where=file, got=", ".join(others) or None, fix=fix) from None
    except (SafetensorError, OSError) as error:
        raise ModelError("not a whole safetensors file", where=file, got=error) from None


def rank_of(settings: Mapping[str, Any], name: str) -> int | None:
    """The rank that is stated of a module (or a parameter), by its name in PEFT."""
    return _stated(settings.get("rank_pattern"), name, settings.get("r"))


def scale_of(settings: Mapping[str, Any], name: str, r: int) -> float:
    """What the product of a module's matrices of rank `r` is multiplied with: alpha / r, or alpha / sqrt(r)."""
    alpha = _stated(settings.get("alpha_pattern"), name, settings.get("lora_alpha", _ALPHA))
    return alpha / (r**0.5 if settings.get("use_rslora") else r)


def alpha_of(scale: float, r: int, use_rslora: bool) -> float:
    """The alpha that gives a scale.

    >>> alpha_of(0.1, 8, False), alpha_of(float(np.float32(2 / 3)), 3, False)
    (0.8, 2.0)
    """
    alpha = scale * (r**0.5 if use_rslora else r)
    # the scale was held in float32; the alpha that a person wrote is the round number beside it
    return float(round(alpha)) if abs(alpha - round(alpha)) <= 1e-6 * alpha else alpha


def _stated(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    # PEFT matches a key as a regex against the end of the module's name
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
