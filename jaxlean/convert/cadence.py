"""How often: evaluations and checkpoints of other projects, by steps, epochs or shares of the run -> ours."""

from collections.abc import Callable
from typing import Any

from jaxlean.convert.peek import count
from jaxlean.convert.row import UNSET, Outcome
from jaxlean.convert.schedule import share_of_steps
from jaxlean.convert.source import Source, truth

_EVAL, _SAVE = "eval.eval_steps", "train.save_steps"
_STRATEGIES = ("eval_strategy", "evaluation_strategy")


def _is_no(value: Any) -> bool:
    # YAML 1.1 reads no as false
    return value is False or str(value).lower().rpartition(".")[2] == "no"


def strategy(source: Source, *keys: str, default: str) -> str:
    """`no`, `steps`, `epoch` or `best`."""
    value = source.get(*keys, default=default)
    return "no" if _is_no(value) else str(value).lower().rpartition(".")[2]


def one_epoch(source: Source) -> bool:
    """Whether the run ends with its first epoch."""
    epochs = source.number("num_train_epochs", "num_epochs")
    return epochs is not None and epochs <= 1 and not (source.number("max_steps") or 0) > 0


def evaluates(logging_steps: Callable[[Source], int]) -> Callable[[Any, Source], Outcome]:
    """A function of rows: `eval_strategy`, by which scores come every `eval_steps`, else every `logging_steps`.

    Args:
        logging_steps: what these are where nobody says.
    """

    def becomes(value: Any, source: Source) -> Outcome:
        name = strategy(source, *_STRATEGIES, default="no")
        if name == "no":
            return Outcome("idle", note="held-out rows, where there are any, are scored before and after only")
        if name == "epoch":
            if one_epoch(source):
                return Outcome("idle", note="the end of the only epoch is the end of the run, which is always scored")
            return Outcome(
                "missing", note=f"scores after each epoch; nearest: {_EVAL}: STEPS; now only before and after"
            )
        steps = source.number("logging_steps") or logging_steps(source)
        if not source.has("eval_steps") and steps >= 1:
            return Outcome("carried", {_EVAL: int(steps)}, "every logging_steps")
        return Outcome("carried", note=f"with {_EVAL}")

    return becomes


def logs(value: Any, source: Source) -> Outcome:
    """Of `logging_steps`, a number of steps or a share of all."""
    if not isinstance(value, int | float) or value >= 1:
        return Outcome("carried", {"train.logging_steps": value})
    steps = share_of_steps(value, source)
    if steps is None:
        return Outcome("missing", note="a share of all steps; nearest: train.logging_steps: STEPS")
    return Outcome("carried", {"train.logging_steps": steps}, "a share of max_steps")


def every(key: str, *strategies: str, default: str) -> Callable[[Any, Source], Outcome]:
    """A function of rows: `eval_steps` or `save_steps`, read where the strategy is steps.

    Args:
        key: ours.
        strategies: the keys of the strategy.
        default: the strategy where none is named.
    """

    def becomes(value: Any, source: Source) -> Outcome:
        name = strategy(source, *strategies, default=default)
        if name != "steps":
            return Outcome("idle", note=f"{strategies[0]} is {name} there: not read")
        if not isinstance(value, int | float) or value >= 1:
            return Outcome("carried", {key: int(value) if isinstance(value, float) else value})
        if value == 0:
            return Outcome("idle", note="off there")
        steps = share_of_steps(value, source)
        if steps is None:
            return Outcome("missing", note=f"a share of all steps; nearest: {key}: STEPS")
        return Outcome("carried", {key: steps}, "a share of max_steps")

    return becomes


def per_epoch(key: str) -> Callable[[Any, Source], Outcome]:
    """A function of rows: Axolotl's `evals_per_epoch` and `saves_per_epoch`."""

    def becomes(value: Any, source: Source) -> Outcome:
        if value == 0:
            return Outcome("idle", note="off there")
        if value == 1 and one_epoch(source):
            return Outcome("idle", note="the end of the only epoch is the end of the run")
        now = "before and after" if key == _EVAL else "ten in a run, by default"
        return Outcome("missing", note=f"{value} times an epoch; nearest: {key}: STEPS; now: {now}")

    return becomes


def saves(value: Any, source: Source) -> Outcome:
    """Of `save_strategy`."""
    name = strategy(source, "save_strategy", default="steps")
    if name == "steps":
        return Outcome("carried", note=f"with {_SAVE}")
    if name == "epoch" and one_epoch(source):
        return Outcome("idle", note="the end of the only epoch is the end of the run, which is always saved")
    does = {"no": "keeps no checkpoint", "epoch": "saves after each epoch", "best": "saves what is best so far"}
    nearest = "eval.load_best: true" if name == "best" else f"{_SAVE}: STEPS"
    return Outcome(
        "missing", note=f"{does.get(name, name)}; nearest: {nearest}; now: ten in a run, so that it can go on"
    )


def save_default(source: Source) -> Any:
    """Trainer saves every 500 steps where nothing is said."""
    return 500 if strategy(source, "save_strategy", default="steps") == "steps" else UNSET


def keeps_all(value: Any, source: Source) -> Outcome:
    """Of a `save_total_limit` that is not set."""
    if value is None:
        return Outcome("missing", note="all checkpoints are kept there; here the last two (train.save_total_limit)")
    return Outcome("carried", {"train.save_total_limit": value})


def held_out(sources: Callable[[Source], list[dict[str, Any]] | None]) -> Callable[[Any, Source], Outcome]:
    """A function of rows: the part of the training rows that is held out, a share or (1 and more) a number of rows.

    Args:
        sources: the training data of a config as entries of `data.train`, where all of them are known.
    """

    def becomes(value: Any, source: Source) -> Outcome:
        if not isinstance(value, int | float) or value <= 0:
            return Outcome("idle", note="nothing is held out")
        if value < 1:
            return Outcome("carried", {"data.eval_fraction": value})
        rows = [count(str(each["path"]), source, each.get("limit")) for each in sources(source) or []]
        known = [number for number in rows if number is not None]
        if rows and len(known) == len(rows) and sum(known) > value:
            share = round(value / sum(known), 6)
            return Outcome("carried", {"data.eval_fraction": share}, f"{value:,.0f} of {sum(known):,} rows")
        return Outcome(
            "missing", {"data.eval_fraction": 0.05, "eval.max_examples": int(value)},
            f"{value:,.0f} rows held out; nearest: a twentieth, of which so many are scored, which is written",
        )  # fmt: skip

    return becomes


def best(value: Any, source: Source) -> Outcome:
    """Of `load_best_model_at_end`."""
    return Outcome("carried", {"eval.load_best": True}) if truth(value) else Outcome("idle", note="off there")


def metric(value: Any, source: Source) -> Outcome:
    """Of `metric_for_best_model`."""
    name = str(value).removeprefix("eval_")
    if name == "loss":
        return Outcome("idle", note="the loss decides by default")
    return Outcome("missing", note=f"the best by {name}, which is not measured here; nearest: eval.metric: loss")


def greater(value: Any, source: Source) -> Outcome:
    """Of `greater_is_better`."""
    if truth(value) and str(source.get("metric_for_best_model", default="loss")).removeprefix("eval_") == "loss":
        return Outcome("missing", note="the larger loss as the better one; here the smaller is")
    return Outcome("idle", note="the metric says it")


def patience(value: Any, source: Source) -> Outcome:
    """Of `early_stopping_patience`."""
    if not isinstance(value, int | float) or value <= 0:
        return Outcome("idle", note="off there")
    return Outcome("carried", {"eval.stopping.patience": int(value)})


def reports(value: Any, source: Source) -> Outcome:
    """Of `report_to`: one name, or a list of them."""
    given = {str(name).lower() for name in (value if isinstance(value, list) else str(value).split(","))}
    given = {name.strip() for name in given} - {"none", ""}
    known = {"report.tensorboard": bool(given & {"tensorboard", "all"})}
    known |= {"report.wandb": True} if "wandb" in given else {}
    others = sorted(given - {"tensorboard", "wandb", "all"})
    if others:
        return Outcome(
            "missing", known, f"{', '.join(others)}; nearest: report.tensorboard, report.wandb, metrics.jsonl"
        )
    return Outcome("carried", known)
