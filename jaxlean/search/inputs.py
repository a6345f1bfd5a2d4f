"""Which settings a shared step takes as arguments: trials that differ in these alone need one compilation.

A setting that the compiler must know (a rank's shape, a batch, an optimizer) makes a program of its own, but for the
rank: adapters of all ranks are trained as the largest, the rest of their columns zero (`adapt.lora.padded`), unless
`search.pad_ranks` is off.
"""

import json
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlean.adapt import lora
from jaxlean.config import RunConfig
from jaxlean.run.job import is_base_drawn
from jaxlean.train.optimizer import INPUTS, schedule

# The learning rate of each step is computed outside of the step, and all that it follows from.
_OF_SCHEDULE = (
    "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "min_lr_ratio", "decay_ratio", "num_cycles"
)  # fmt: skip
# Of the adapters: in `lora_scale`, in their shape, in the key and the rate of their dropout, in the updates.
_OF_ADAPTERS = ("lora_alpha", "use_rslora", "r", "lora_dropout", "loraplus_lr_ratio")
# What only the host needs: which rows come when, how long the run is, how often it says something.
_OF_HOST = (
    "train.max_steps", "train.num_train_epochs", "train.logging_steps", "train.save_steps", "train.save_total_limit",
    "data.shuffle", "data.curriculum",
)  # fmt: skip


def is_argument(path: str, config: RunConfig) -> bool:
    """Whether trials that differ in this setting share a program."""
    section, _, name = path.partition(".")
    if section == "train" and name in INPUTS:
        # turned off it is not there at all
        return getattr(config.train, name) is not None
    if section == "train" and name in _OF_SCHEDULE:
        return True
    if section == "lora" and name in _OF_ADAPTERS:
        # adafactor takes means over the columns of an adapter, and PiSSA's adapter is a part of the base
        return name != "r" or (config.search.pad_ranks and config.train.optim != "adafactor" and lora_is_drawn(config))
    if path == "seed":
        return not is_base_drawn(config)
    is_weight = path.startswith("data.train.") and path.endswith(".weight")
    return is_weight or any(path == own or path.startswith(own + ".") for own in _OF_HOST)


def lora_is_drawn(config: RunConfig) -> bool:
    """Whether adapters start without a look at the base, which trials can then share."""
    return config.lora is not None and config.lora.init_lora_weights != "pissa"


def program_key(config: RunConfig, space: Collection[str]) -> str:
    """What the programs of two trials have in common where they have all of it in common."""
    content = config.model_dump(mode="json", exclude={"search", "output_dir", "report", "cost"})
    for path in space:
        if is_argument(path, config):
            *parents, last = path.split(".")
            node: Any = content
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node[part]
            node[int(last) if isinstance(node, list) else last] = None
    return json.dumps(content, sort_keys=True)


def learning_rates(config: RunConfig, num_steps: int) -> np.ndarray:
    """float32 [num_steps]: of each step."""
    rates = schedule(config.train, num_steps)(jnp.arange(num_steps, dtype=jnp.int32))
    return np.broadcast_to(np.asarray(rates, np.float32), (num_steps,))


def constants(config: RunConfig, space: Collection[str]) -> dict[str, np.generic]:
    """The arguments of a trial's steps that stay the same from step to step; those not searched are in the program."""
    found: dict[str, np.generic] = {"seed": np.uint32(config.seed)}
    for name in INPUTS:
        if f"train.{name}" in space and name != "learning_rate" and getattr(config.train, name) is not None:
            found[name] = np.float32(getattr(config.train, name))
    if config.lora is not None:
        found["lora_scale"] = np.float32(lora.scale(config.lora))
        if "lora.lora_dropout" in space:
            found["lora_dropout"] = np.float32(config.lora.lora_dropout)
        if "lora.loraplus_lr_ratio" in space:
            found["loraplus_lr_ratio"] = np.float32(config.lora.loraplus_lr_ratio or 1.0)
    return found
