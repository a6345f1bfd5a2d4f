"""The learning rate's way: other projects' schedulers and warm-ups -> ours (`train.lr_scheduler_type`, `warmup_...`).

Hugging Face's names, which all four projects use: transformers/optimization.py.
"""

import math
from typing import Any

from jaxlean.convert.row import UNSET, Outcome
from jaxlean.convert.source import Source

_TYPE, _STEPS, _RATIO = "train.lr_scheduler_type", "train.warmup_steps", "train.warmup_ratio"
_SAME = {name: name for name in ("linear", "cosine")} | {"constant_with_warmup": "constant"}
_WITH_FLOOR = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
_NONE = {
    "inverse_sqrt": "falls with the root of the step",
    "reduce_lr_on_plateau": "falls when the loss no longer does",
    "one_cycle": "rises and falls once",
    "rex": "falls late",
    "greedy": "follows the loss",
}


def scheduler(value: Any, source: Source) -> Outcome:
    """Of `lr_scheduler_type`, with what belongs to it in `lr_scheduler_kwargs`."""
    name = str(value).lower().removeprefix("schedulertype.")
    if name in _SAME:
        return Outcome("carried", {_TYPE: _SAME[name]} | (_floor(source) if name == "cosine" else {}))
    if name == "constant":
        return Outcome("carried", {_TYPE: "constant", _STEPS: 0}, "Hugging Face's constant has no warm-up")
    if name == "cosine_with_restarts":
        cycles = int(source.number("lr_scheduler_kwargs.num_cycles") or 1)
        return Outcome("carried", {_TYPE: name, "train.num_cycles": cycles}, f"cycles there: {cycles}")
    if name in _WITH_FLOOR:
        floor = _floor(source)
        check = "" if floor else "it ends above zero there: train.min_lr_ratio says where"
        return Outcome("carried", {_TYPE: "cosine"} | floor, "cosine with train.min_lr_ratio", check)
    if name == "warmup_stable_decay":
        return _stable(source)
    if name == "polynomial":
        power = source.number("lr_scheduler_kwargs.power") or 1.0
        if power == 1:
            return Outcome("carried", {_TYPE: "linear"}, "a polynomial of power 1 is a line")
        return Outcome("missing", {_TYPE: "linear"}, f"falls as a polynomial of power {power:g}; nearest: linear")
    does = _NONE.get(name, "is not known here")
    return Outcome("missing", {_TYPE: "cosine"}, f"{name} {does}; nearest: cosine, which is written")


def _floor(source: Source) -> dict[str, Any]:
    """The learning rate that a cosine ends at."""
    rate = source.number("lr_scheduler_kwargs.min_lr_rate")
    absolute, peak = source.number("lr_scheduler_kwargs.min_lr"), source.number("learning_rate")
    if rate is None and absolute is not None and peak:
        rate = absolute / peak
    return {"train.min_lr_ratio": rate} if rate else {}


def _stable(source: Source) -> Outcome:
    settings: dict[str, Any] = {_TYPE: "warmup_stable_decay"}
    low = source.number("lr_scheduler_kwargs.min_lr_ratio")
    settings |= {"train.min_lr_ratio": low} if low else {}
    decay, steps = source.number("lr_scheduler_kwargs.num_decay_steps"), max_steps(source)
    if decay is not None and steps:
        return Outcome("carried", settings | {"train.decay_ratio": decay / steps}, "steps of the decay as a share")
    check = "train.decay_ratio is a share of the steps (default 0.2), num_decay_steps there a number of them"
    return Outcome("carried", settings, "decays in a line", check)


def scheduler_setting(value: Any, source: Source) -> Outcome:
    """Of a key of `lr_scheduler_kwargs`: told with the scheduler's where that reads it."""
    read = {"num_cycles", "min_lr", "min_lr_rate", "min_lr_ratio", "num_decay_steps", "power"}
    given = {key.rpartition(".")[2] for key in source.values if key.startswith("lr_scheduler_kwargs.")}
    others = sorted(given - read)
    if others:
        return Outcome("missing", note=f"shapes the schedule; nearest: {_TYPE} alone; not read: {', '.join(others)}")
    return Outcome("carried", note=f"with {_TYPE}")


def warmup_steps(value: Any, source: Source) -> Outcome:
    """Of `warmup_steps`: a number of steps, or since transformers 5 a share of them."""
    number = float(value) if isinstance(value, int | float) else None
    if _is_constant(source):
        return Outcome("idle", note="Hugging Face's constant has no warm-up")
    if number is None:
        return Outcome("carried", {_STEPS: value})
    if number == 0 and (source.number("warmup_ratio") or 0) > 0:
        return Outcome("idle", note="0: warmup_ratio says it")
    if 0 < number < 1:
        return Outcome("carried", {_RATIO: number}, "below 1 it is a share of the steps")
    return Outcome("carried", {_STEPS: int(number)})


def warmup_ratio(value: Any, source: Source) -> Outcome:
    """Of `warmup_ratio`, over which steps win."""
    if _is_constant(source):
        return Outcome("idle", note="Hugging Face's constant has no warm-up")
    if (source.number("warmup_steps") or 0) > 0:
        return Outcome("idle", note="warmup_steps wins over it")
    return Outcome("carried", {_RATIO: value})


def no_warmup(source: Source) -> Any:
    """Trainer's default: none."""
    return UNSET if source.has("warmup_ratio") or _is_constant(source) else 0


def max_steps(source: Source) -> int | None:
    """Steps of the run, where the file says so."""
    steps = source.number("max_steps", "training.max_steps")
    return int(steps) if steps is not None and steps > 0 else None


def steps_or_epochs(value: Any, source: Source) -> Outcome:
    """Of `max_steps`, where -1 or 0 leaves it to the epochs."""
    if isinstance(value, int | float) and value <= 0:
        return Outcome("idle", note="left to the epochs, as by default")
    return Outcome("carried", {"train.max_steps": value})


def share_of_steps(value: float, source: Source) -> int | None:
    """A number of steps, given as a share of all, where these are known."""
    steps = max_steps(source)
    return max(1, math.ceil(value * steps)) if steps is not None else None


def _is_constant(source: Source) -> bool:
    return str(source.get("lr_scheduler_type", "lr_scheduler", default="")).lower() == "constant"
