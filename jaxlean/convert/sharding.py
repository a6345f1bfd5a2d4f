"""How a model lies on several devices: DeepSpeed's stages and FSDP's strategies -> `mesh`."""

import json
import re
from pathlib import Path
from typing import Any

from jaxlean.convert import reasons
from jaxlean.convert.row import Outcome
from jaxlean.convert.source import Source, truth

_SPLIT = {"mesh.data": 1, "mesh.fsdp": -1}
_COPIES = (
    "copies of the model with split optimizer state; nearest: mesh.data (the default), or mesh.fsdp: -1: all split"
)


def deepspeed(value: Any, source: Source) -> Outcome:
    """Of `deepspeed`: a config, or the name of its file."""
    settings = value if isinstance(value, dict) else _file(str(value), source)
    zero = settings.get("zero_optimization", {})
    zero = zero if isinstance(zero, dict) else {}
    stage = zero.get("stage")
    if stage is None and (found := re.search(r"(?:zero|stage|z|ds)_?([0-3])", Path(str(value)).stem.lower())):
        stage = int(found[1])
    offloads = any("offload" in key and each for key, each in zero.items()) or "offload" in str(value).lower()
    check = f"DeepSpeed moves state to the host there; nearest: {reasons.OFF_HOST}" if offloads else ""
    if stage == 3:
        return Outcome("carried", _SPLIT, "ZeRO-3 splits parameters over all devices: so does mesh.fsdp", check)
    if stage in (0, 1, 2):
        return Outcome("missing", note=f"ZeRO-{stage}: {_COPIES}", check=check)
    return Outcome("missing", note="DeepSpeed, of a stage that is not known; nearest: mesh: auto", check=check)


def _file(name: str, source: Source) -> dict[str, Any]:
    for place in (Path(name), source.file.parent / name):
        try:
            read = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            continue
        return read if isinstance(read, dict) else {}
    return {}


def fsdp(value: Any, source: Source) -> Outcome:
    """Of `fsdp`: its strategy, alone or in a list with options."""
    words = set(str(value).lower().replace("[", " ").replace("]", " ").replace(",", " ").replace("'", " ").split())
    check = f"FSDP moves state to the host there; nearest: {reasons.OFF_HOST}" if "offload" in words else ""
    if "full_shard" in words or value is True or words == {"true"}:
        return Outcome("carried", _SPLIT, "full_shard splits parameters over all devices: so does mesh.fsdp", check)
    if "shard_grad_op" in words:
        return Outcome("missing", note=f"shard_grad_op: {_COPIES}", check=check)
    if words & {"hybrid_shard", "hybrid_shard_zero2"}:
        note = "hybrid_shard: split within a machine, copies between; nearest: mesh.data: MACHINES, mesh.fsdp: -1"
        return Outcome("missing", note=note, check=check)
    return Outcome("idle", note="copies of the model (mesh.data) are the default")


def recomputes(value: Any, source: Source) -> Outcome:
    """Of FSDP's `activation_checkpointing`."""
    if not truth(value):
        return Outcome("idle", note="off there")
    return Outcome("carried", {"train.remat": "full"}, "activations are recomputed")


def offloads(value: Any, source: Source) -> Outcome:
    """Of FSDP's `offload_params`."""
    if not truth(value):
        return Outcome("idle", note="off there")
    return Outcome("missing", note=f"parameters wait on the host; nearest: {reasons.OFF_HOST}")


def axis(name: str, one: str) -> Any:
    """A function of rows: so many devices along `mesh.<name>`; 1 is none."""

    def becomes(value: Any, source: Source) -> Outcome:
        if isinstance(value, int) and value > 1:
            return Outcome("carried", {f"mesh.{name}": value})
        return Outcome("idle", note=one)

    return becomes
