"""What is said of a run in words and figures: what was trained on what, how it ended, what it gained and took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlean.report import account
from jaxlean.report.read import Run, number
from jaxlean.run.units import show_bytes, show_count, show_percent, show_seconds, show_usd

# What is measured on held-out rows beside the loss, most telling first; all but `shares` are shares of 1.
QUALITY = ("exact_match", "accuracy", "f1", "macro_f1", "weighted_f1", "precision", "recall", "mrr")
_NUMBERS = ("loss", "perplexity", "bits_per_byte")
# Of the figures at the head of runs.
_ORDER = (
    *("held-out loss", "training loss", *(name.replace("_", " ") for name in QUALITY)),
    *("time", "cost", "energy", "peak memory", "tokens per second"),
)
_LOSS_OF = {"classify": "row", "tag": "word", "embed": "pair"}
_STATUS = {
    "completed": "completed",
    "preempted": "preempted: --resume goes on with it",
    "diverged": "diverged: a loss or gradient was not a number",
    "failed": "failed",
    "budget": "stopped at its budget",
    "running": "still running",
    "unfinished": "unfinished: nothing says how it ended",
}


@dataclass(frozen=True)
class Figure:
    """Attributes: label: what; value: of it; unit: of that; detail: what belongs to it, in a few words."""

    label: str
    value: str
    unit: str = ""
    detail: str = ""


def what(run: Run) -> str:
    """What was trained.

    >>> what(Run(None, "a", "", None, {"model": {"path": "org/base"}, "lora": {"r": 8}}))
    'LoRA of rank 8 on org/base'
    """
    base = run.setting("model.path")
    if run.setting("distill"):
        teacher = run.setting("distill.teacher.path")
        return f"Distillation of {teacher} into {base or 'a part of it'}"
    if base is None:
        return f"A {run.setting('model.architecture.model_type') or 'model'} from zero"
    if run.setting("lora"):
        return f"LoRA of rank {run.setting('lora.r')} on {base}"
    return f"Fine-tuning of {'parts' if run.setting('train.trainable') else 'all'} of {base}"


def data(run: Run) -> str:
    """What it was trained on: the first sources by name."""
    sources = run.setting("data.train")
    paths = [source.get("path") if isinstance(source, Mapping) else source for source in
             (sources if isinstance(sources, list) else [sources]) if source]  # fmt: skip
    shown = ", ".join(map(str, paths[:2])) or "no data that the config names"
    return shown + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def loss_unit(run: Run) -> str:
    """What a loss is in, by the run's task."""
    return f"nats per {_LOSS_OF.get(str(run.setting('task')), 'token')}"


def device(run: Run) -> str:
    kind, num = run.summary.get("device_kind"), number(run.summary.get("num_devices"))
    return "" if kind is None else str(kind) if num in (None, 1) else f"{num:,.0f} x {kind}"


def status(run: Run) -> str:
    """How it ended, in words."""
    stopped = run.summary.get("stopped_early")
    words = _STATUS.get(run.status, run.status)
    if isinstance(stopped, Mapping) and run.status == "completed":
        words = f"stopped early at step {show_count(number(stopped.get('step')))}: {stopped.get('message')}"
    return words


def date(run: Run) -> str:
    return f"{run.ended:%Y-%m-%d %H:%M} UTC" if run.ended is not None else ""


def figures(run: Run) -> list[Figure]:
    """The row of figures at the head of a run."""
    return [figure for figure in (
        _quality(run), _best_quality(run), _time(run), _cost(run), _energy(run), _memory(run), _speed(run)
    ) if figure is not None]  # fmt: skip


def compared(runs: Sequence[Run]) -> tuple[list[str], list[list[Figure | None]]]:
    """(labels, rows): the same figures of several runs beside each other; None where one does not have it."""
    each = [{figure.label: figure for figure in figures(run)} for run in runs]
    labels = [label for label in _ORDER if any(label in found for found in each)]
    return labels, [[found.get(label) for label in labels] for found in each]


def qualities(run: Run) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): all that was measured on held-out rows, before and after; no rows where nothing was."""
    found = {
        "before": run.summary.get("eval_before"), "with examples": run.summary.get("eval_few_shot"),
        "after": run.summary.get("eval_after"), "teacher": run.summary.get("eval_teacher"),
    }  # fmt: skip
    if run.evaluations:
        first, last = run.evaluations[0], run.evaluations[-1]
        if found["before"] is None and first["step"] == 0:
            found["before"] = first
        if found["after"] is None and last["step"] > 0:
            found[f"at step {last['step']:,}"] = last
    there: dict[str, Mapping[str, Any]] = {name: value for name, value in found.items() if isinstance(value, Mapping)}
    rows = []
    for key in (*_NUMBERS, *QUALITY, "examples", "tokens"):
        if any(number(value.get(key)) is not None for value in there.values()):
            show = show_percent if key in QUALITY else show_count if key in ("examples", "tokens") else _shown
            rows.append([key.replace("_", " "), *(show(number(value.get(key))) for value in there.values())])
    return ["held-out", *there], rows


def versions(run: Run) -> str:
    found = run.summary.get("versions")
    return ", ".join(f"{name} {version}" for name, version in found.items()) if isinstance(found, Mapping) else ""


def _gain(run: Run, key: str) -> tuple[float | None, float | None, str]:
    """(before, after, at which step where that is not the end): of a run that came to no end, the last it measured."""
    ends = [run.summary.get(when) for when in ("eval_before", "eval_after")]
    before, after = (number(found.get(key)) if isinstance(found, Mapping) else None for found in ends)
    there = [(line["step"], value) for line in run.evaluations if (value := number(line.get(key))) is not None]
    if before is None and there and there[0][0] == 0:
        before = there[0][1]
    if after is None and there and there[-1][0] > 0:
        return before, there[-1][1], f"at step {there[-1][0]:,}"
    return before, after, ""


def _quality(run: Run) -> Figure:
    before, after, when = _gain(run, "loss")
    trained, unit = _shown(run.last("train_loss", "loss")), loss_unit(run)
    if before is None and after is None:
        return Figure("training loss", trained, "", f"{unit}; held-out: not measured")
    start = f"{_shown(before)} → " if before is not None else ""
    detail = when if after is not None else f"training loss {trained}"
    return Figure("held-out loss", start + _shown(after), "", ", ".join(filter(None, (unit, detail))))


def _best_quality(run: Run) -> Figure | None:
    for key in QUALITY:
        before, after, when = _gain(run, key)
        if after is not None:
            start = f"{show_percent(before).removesuffix(' %')} → " if before is not None else ""
            return Figure(key.replace("_", " "), start + show_percent(after), "", when)
    return None


def _time(run: Run) -> Figure:
    steps = run.last("train_seconds")
    detail = f"{show_seconds(steps)} in steps" if steps is not None else ""
    return Figure("time", show_seconds(run.last("seconds")), "", detail)


def _cost(run: Run) -> Figure:
    usd = run.last("usd")
    unknown = "price unknown: cost.usd_per_hour" if usd is None else ""
    return Figure("cost", show_usd(usd), "", device(run) if usd is not None else unknown)


def _energy(run: Run) -> Figure | None:
    energy, emissions = account.energy(run), account.emissions(run)
    if energy is None:
        return None
    said = emissions is not None and emissions.value != "-"
    return Figure(
        "energy", energy.value, account.how(energy), emissions.value if emissions is not None and said else ""
    )


def _memory(run: Run) -> Figure:
    value, _, unit = show_bytes(run.last("peak_memory_bytes")).partition(" ")
    step = number(run.summary.get("predicted_memory_bytes"))
    return Figure("peak memory", value, unit, f"{show_bytes(step)} a step, predicted" if step is not None else "")


def _speed(run: Run) -> Figure:
    tokens, steps = run.last("total_tokens"), run.steps
    detail = f"{show_count(tokens)} tokens in {show_count(steps)} steps" if tokens is not None else ""
    return Figure("tokens per second", show_count(run.last("tokens_per_second")), "", detail)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
