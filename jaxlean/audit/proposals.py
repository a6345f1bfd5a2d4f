"""Which cuts are not in force in a config, and what it would have to say for each.

What a cut is called, and which of the twelve it is, is asked of `receipt.cuts`: it is in force with the settings, and
not without them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlean.config import RunConfig, with_values
from jaxlean.plan.search import Ways
from jaxlean.receipt.cuts import in_force

# What `in_force` is told of a run that has not been: what only a run knows then is what the config says.
_NOTHING_RAN = {"dtype": "float32", "attention": "plain", "remat": "none"}
_SAVES_STEPS = "it saves steps to an equal quality, which only runs show"


@dataclass(frozen=True)
class Proposal:
    """A cut that a config does without.

    Args:
        number: of the twelve; None: one beside them.
        name: as the receipt says it.
        settings: `section.key` -> value: what to add.
        ways: what the planner may choose beside them.
        instead: of several of one name, one can be had.
        reads: it changes what the rows become: how many steps there are, and of how many tokens.
        note: what is to be known of it.
    """

    number: int | None
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    ways: Ways = "own"
    instead: str = ""
    reads: bool = False
    note: str = ""


@dataclass(frozen=True)
class Unplanned:
    """A cut whose saving no plan can tell.

    Args:
        number, name: as of `Proposal`.
        settings: what to add.
        why: its saving is not told.
    """

    number: int | None
    name: str
    settings: Mapping[str, Any]
    why: str


def cuts_in_force(config: RunConfig, ran: Mapping[str, Any]) -> list[tuple[int | None, str]]:
    """(number, name) of the cuts that a config has.

    Args:
        config: of a run that is to be.
        ran: what the planner chose where the config leaves it open: `dtype`, `remat`.
    """
    attention = "block" if config.model.attention == "auto" else config.model.attention
    found = in_force(config, _NOTHING_RAN | {"attention": attention} | dict(ran))
    names: list[tuple[int | None, str]] = [(cut.number, cut.name) for cut in found]
    return list(dict.fromkeys(names))


def proposals(config: RunConfig, dtypes: set[str], *, spreads: bool = True) -> list[Proposal]:
    """The cuts that may be planned.

    Args:
        config: resolved.
        dtypes: of matrix products on the targets.
        spreads: whether a step has more than one sequence, or a target more than one device.
    """
    found = [_named(config, each) for each in _planned(config, dtypes)]
    return found if spreads else [each for each in found if each.ways != "spread"]


def unplanned(config: RunConfig, *, spreads: bool = True) -> list[Unplanned]:
    """The cuts whose saving only runs can show, or that there is nothing to plan of. Args: as of `proposals`."""
    found = list(_not_planned(config))
    if not spreads:
        why = "a step is one sequence on one device"
        found.append(Unplanned(10, "right-sized parallelism", {}, why))
    return found


def _planned(config: RunConfig, dtypes: set[str]) -> Iterator[Proposal]:
    model, train, data = config.model, config.train, config.data
    if config.lora is None and _may_adapt(config):
        note = "adapters want a higher learning rate than all weights, ten times as a rule: train.learning_rate"
        yield Proposal(2, "LoRA", {"lora": {"r": 16, "lora_alpha": 32}}, note=note)
    if train.remat != "auto":
        yield Proposal(4, "gradient checkpointing", {"train.remat": "auto"})
    if "float32" in dtypes and model.dtype != "bfloat16":
        yield Proposal(5, "mixed precision", {"model.dtype": "bfloat16"})
    if train.loss_chunk_bytes is None and config.task == "generate":
        yield Proposal(5, "loss in chunks", {"train.loss_chunk_bytes": "auto"})
    if model.attention == "plain":
        yield Proposal(5, "fused attention", {"model.attention": "auto"})
    if model.quantization == "none" and _base_is_frozen(config):
        for form in ("int8", "nf4"):
            yield Proposal(6, f"base in {form}", {"model.quantization": form}, instead="base")
    # beside all weights the moments weigh twice as much as they do; beside adapters they are small
    if config.lora is None and train.optim == "adamw":
        yield Proposal(None, "8-bit Adam", {"train.optim": "adamw_8bit"})
    yield Proposal(10, "right-sized parallelism", ways="spread")
    if not data.packing and config.task == "generate" and not data.streaming and train.max_steps is None:
        note = "fewer steps, each of more rows: the learning rate may want to be higher"
        yield Proposal(None, "packing", {"data.packing": True}, reads=True, note=note)


def _not_planned(config: RunConfig) -> Iterator[Unplanned]:
    train, data = config.train, config.data
    if config.model.path is None:
        why = "training from zero is another job"
        yield Unplanned(1, "open weights", {"model.path": "MODEL"}, why)
    if not config.model.new_tokens:
        yield Unplanned(3, "warm-start embeddings", {"model.new_tokens": "auto"}, _SAVES_STEPS)
    if data.curriculum is None and not data.streaming:
        yield Unplanned(7, "curriculum", {"data.curriculum": "length"}, _SAVES_STEPS)
    if config.distill is None:
        why = "it makes a smaller model, which is cheaper where it is used"
        yield Unplanned(8, "distillation", {"distill.teacher": "MODEL"}, why)
    if not config.search.space:
        why = "it saves trials: of many runs, not of this one"
        yield Unplanned(
            9,
            "Bayesian optimisation with Hyperband",
            {"search.space": {"train.learning_rate": {"log": [1e-5, 1e-2]}}},
            why,
        )
    if config.lora is None and not _may_adapt(config):
        why = "all weights are to train here (model.architecture, train.trainable, train.pruning, distill)"
        yield Unplanned(2, "LoRA", {}, why)
    if config.lora is None:
        yield Unplanned(6, "base in int8 or nf4", {}, "a base that trains is held whole; with LoRA, audit again")
    if config.eval.mode != "async" and not (config.eval.eval_steps and _has_held_out(config)):
        yield Unplanned(11, "asynchronous evaluation", {}, "nothing is evaluated while it trains (eval.eval_steps)")
    elif config.eval.mode == "sync":
        why = "how long an evaluation takes is measured while it runs: jaxlean receipt says it then"
        yield Unplanned(11, "asynchronous evaluation", {"eval.mode": "async"}, why)
    if config.eval.stopping is None and config.eval.eval_steps and _has_held_out(config):
        why = "when the loss stops falling shows while it runs"
        yield Unplanned(None, "early stopping", {"eval.stopping.patience": 3}, why)
    why = "what chosen rows cost in quality only runs show: configs/curate.yaml has the steps"
    yield Unplanned(12, "choice of rows", {}, why)
    if not data.packing and config.task == "generate" and train.max_steps is not None:
        why = "train.max_steps says how many steps there are: packed, each learns from more rows"
        yield Unplanned(None, "packing", {"data.packing": True}, why)
    if config.compilation_cache is False:
        why = "what it saves is the compilation of the next start"
        yield Unplanned(None, "compilation cache", {"compilation_cache": True}, why)


def _named(config: RunConfig, proposal: Proposal) -> Proposal:
    """The proposal as the receipt calls the cut, where the settings alone put one in force."""
    if not proposal.settings:
        return proposal
    changed = with_values(config, proposal.settings)
    ran = {"dtype": changed.model.dtype}
    had = cuts_in_force(config, {"dtype": config.model.dtype})
    new = [cut for cut in cuts_in_force(changed, ran) if cut not in had]
    if len(new) != 1:
        return proposal
    number, name = new[0]
    return Proposal(number, name, proposal.settings, proposal.ways, proposal.instead, proposal.reads, proposal.note)


def _may_adapt(config: RunConfig) -> bool:
    """Whether all weights train for no reason that an adapter could not serve."""
    train = config.train
    return config.model.architecture is None and config.distill is None and not (train.trainable or train.pruning)


def _base_is_frozen(config: RunConfig) -> bool:
    from jaxlean.run.job import is_base_quantized

    return config.lora is not None and config.model.architecture is None and not is_base_quantized(config)


def _has_held_out(config: RunConfig) -> bool:
    return bool(config.data.eval or config.data.eval_fraction)
