"""How narrow, or how shallow, a model has to be for a share of its parameters."""

import math
from dataclasses import replace
from typing import Any, Literal

from jaxlean import tree
from jaxlean.compress.structured import narrowed
from jaxlean.errors import ConfigError
from jaxlean.hub.load import Model
from jaxlean.models.build import abstract

What = Literal["neurons", "heads", "layers", "structured"]


def num_params(config: Any) -> int:
    """Parameters of a model by its config."""
    return sum(math.prod(leaf.shape) for leaf in tree.flatten(abstract(config)[1]).values())


def sizes(model: Model, share: float, what: What, *, multiple: int = 8) -> dict[str, int]:
    """The sizes at which at most a share of a model's parameters is left.

    Args:
        model: as it is.
        share: of all parameters, embedding and head included, which stay as they are; above 0, below 1.
        what: goes: neurons, heads, layers, or (`structured`) heads and neurons alike, as evenly as heads can go.
        multiple: of the number of neurons.

    Returns:
        arguments of `structured.width`, or `num_layers`.

    Raises:
        ConfigError: a share that is none, or that only more than all of it would reach.
        ModelError: as of `structured.narrowed`.
    """
    if not 0 < share < 1:
        raise ConfigError("prune.params: a share of the parameters that stays", got=share, wanted="above 0, below 1")
    config, most = model.config, share * num_params(model.config)
    if what == "layers":
        return {"num_layers": _largest(config, most, range(1, config.num_layers + 1), _shallow, what)}
    found: dict[str, int] = {}
    if what in ("heads", "structured"):
        name, choices = _heads(config)
        if what == "heads":
            at = _largest(config, most, choices, lambda config, size: narrowed(model, **{name: size}), what)
        else:  # what the layers keep, of heads rounded up
            whole = num_params(config)
            inside = (whole - num_params(_shallow(config, 1))) * config.num_layers / max(config.num_layers - 1, 1)
            left = 1 - (1 - share) * whole / max(inside, 1)
            at = next((size for size in choices if size >= left * getattr(config, name)), choices[-1])
        found[name] = at
    if what in ("neurons", "structured"):
        fewer = narrowed(model, **found)
        choices = list(range(multiple, config.intermediate_size + 1, multiple)) or [config.intermediate_size]
        found["intermediate_size"] = _largest(fewer, most, choices, _narrow, what)
    return found


def _heads(config: Any) -> tuple[str, list[int]]:
    """(what is counted of heads, how many there may be): groups, or where there is one group its heads."""
    if config.num_kv_heads > 1:
        return "num_kv_heads", list(range(1, config.num_kv_heads + 1))
    return "num_heads", list(range(1, config.num_heads + 1))


def _shallow(config: Any, size: int) -> Any:
    return replace(config, num_layers=size, kinds=config.kinds[:size])


def _narrow(config: Any, size: int) -> Any:
    return replace(config, intermediate_size=size)


def _largest(config: Any, most: float, choices: Any, change: Any, what: str) -> int:
    """The largest choice with which there are at most so many parameters; they grow with it by as much each time."""
    choices = list(choices)
    first = num_params(change(config, choices[0]))
    each = (num_params(change(config, choices[-1])) - first) / max(choices[-1] - choices[0], 1)
    fitting = [size for size in choices if first + each * (size - choices[0]) <= most + 0.5]
    if not fitting:
        raise ConfigError(
            f"prune.params: so few are left only if more goes than all {what}", got=f"{most:,.0f} parameters",
            wanted=f"{first:,} or more", fix="a larger share, or prune.method=structured or layers",
        )  # fmt: skip
    return fitting[-1]
