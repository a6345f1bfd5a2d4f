"""What a run came to: summary.json and the table printed at its end."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from jaxlean.errors import RunError
from jaxlean.run.metrics import to_json
from jaxlean.run.units import show_bytes, show_count, show_energy, show_number, show_percent, show_seconds, show_usd

if TYPE_CHECKING:
    from rich.console import Console


class Evaluation(TypedDict, total=False):
    """Quality on the held-out rows."""

    loss: float | None  # nats per token that carries loss
    perplexity: float | None  # exp(loss)
    bits_per_byte: float  # loss over the bytes of the text instead of its tokens: of any tokenizer, to be compared
    exact_match: float | None  # share of generated completions that are the wanted one, 0 to 1
    accuracy: float  # share of labels that are right; of pairs, of anchors whose positive is the nearest of all
    macro_f1: float  # F1 of labels, all labels alike
    weighted_f1: float  # ... by how often they are wanted
    precision: float  # of spans of tags
    recall: float
    f1: float
    mrr: float  # mean of 1 / the place of an anchor's positive among all
    shots: float  # examples that the model was shown, of each row (generate) or label (classify), on average
    examples: int  # held-out rows
    tokens: int  # held-out tokens that carry loss


class MemoryByCategory(TypedDict):
    """What a step takes on one device, in bytes (`jaxlean.run.step_memory`)."""

    frozen: int  # parameters that do not train, as they are held
    trained: int  # parameters that do
    optimizer: int  # its moments and counts; of replicas also what they started the round from
    batch: int  # tokens, masks, labels, images; of a teacher what it said of them
    temporaries: int  # all the rest: activations, gradients, what the compiled program works in


class Summary(TypedDict, total=False):
    """The keys of summary.json; a key with nothing to say is null."""

    status: str  # completed, preempted, budget (a limit was reached), diverged (a loss that is not a number), failed
    ended: str  # when the last process of it did, UTC, ISO 8601
    steps: int  # optimizer updates done
    tokens: int  # trained tokens that carry loss
    total_tokens: int  # trained tokens, padding left out
    seconds: float  # wall time of the whole run, loading, compilation and evaluation included: what is paid for
    train_seconds: float  # of these, in training steps
    compile_seconds: float  # tracing and compiling
    phases: dict[str, float]  # `seconds` by what they went to (jaxlean.cost.phases); together they are `seconds`
    data_wait_share: float | None  # of the seconds in steps, those in which devices waited for the next batch
    accelerator_utilization: float | None  # share of `seconds` in which devices computed steps
    accelerator_hours: float  # `seconds` of all devices; of a CPU, of the machine
    flops_per_step: float | None  # of matrix products on all devices, what is computed twice included
    flops: float | None  # of all steps
    mfu: float | None  # model FLOPs utilisation (PaLM): useful FLOPs over the peak; null where no peak is known
    kwh: float | None  # energy of all machines
    energy_source: str  # measured or modelled, and by what
    gco2e: float | None  # what that emitted where the machines stand (cost.region)
    gco2e_source: str
    compiled_from_cache: bool | None  # whether this process read its step from disk; null where no cache was asked
    tokens_per_second: float  # total_tokens / train_seconds
    predicted_memory_bytes: int | None  # of a step on one device, by XLA's analysis: parameters, state, all between
    memory_by_category: MemoryByCategory | None  # the same by what takes it
    measured_memory_bytes: int | None  # of one device while it trained; on CPU what the process held beyond its start
    predicted_step_seconds: float | None  # from the work in the step and the hardware table (jaxlean.run.predict)
    measured_step_seconds: float | None  # the median of this process's steps
    peak_memory_bytes: int  # of one device, or of the process on CPU (jaxlean.cost.memory)
    dtype: str  # of matrix products
    attention: str  # its back end
    remat: Any  # what was recomputed: as train.remat, of auto what it chose
    num_params: int  # parameters of base and adapter
    num_trainable: int  # parameters that train
    train_loss: float | None  # nats per token, mean over the last logging interval
    eval_before: Evaluation | None  # of the base, before training
    eval_few_shot: Evaluation | None  # of the base, with `eval.shots` examples
    eval_after: Evaluation | None  # of the result
    eval_teacher: Evaluation | None  # of the teacher, in a run that distils
    best_step: int | None  # with the best score while it trained; with eval.load_best, the step that was written
    stopped_early: dict[str, Any] | None  # step, rule and message of run.stopping.Stop
    evaluations: dict[str, Any] | None  # of a run that keeps scores: eval.mode, and how many were scored, skipped ...
    usd: float | None  # null where the price of the device is not known
    usd_by_price: dict[str, float]  # by each price that is known: on_demand, spot, own, electricity
    price_source: str  # of `usd`
    device_kind: str  # as jax says it
    num_devices: int
    versions: dict[str, str]  # of jaxlean and what it stands on


# What a task's evaluation has beside its loss, in the order of the table.
_QUALITY = ("accuracy", "macro_f1", "weighted_f1", "precision", "recall", "f1", "mrr")


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole or not at all. Keys of `Summary` that are missing become null, others are kept.

    Raises:
        RunError: the file cannot be written.
    """
    full = {key: summary.get(key) for key in Summary.__annotations__} | dict(summary)
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.write_text(json.dumps(to_json(full), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise RunError("the summary cannot be written", where=path, got=error) from error


def _both(summary: Mapping[str, Any], key: str, show: Callable[[Any], str]) -> str:
    return f"{show(summary.get('predicted_' + key))} predicted, {show(summary.get('measured_' + key))} measured"


def final_table(
    summary: Mapping[str, Any], *, adapter: Path | str | None = None, console: "Console | None" = None
) -> None:
    """Print the run's result: quality before and after, speed, memory, time, dollars, and where the adapter lies.

    Args:
        summary: keys of `Summary`; a missing one shows as "-".
        adapter: folder of the result.
        console: default: rich's on stdout.
    """
    from rich.console import Console
    from rich.table import Table

    measured: dict[str, Mapping[str, Any]] = {"before": summary.get("eval_before") or {}}
    few_shot = summary.get("eval_few_shot")
    if few_shot:  # beside what training has to beat anyway
        measured[f"{few_shot['shots']:.3g}-shot"] = few_shot
    measured["after"] = summary.get("eval_after") or {}
    if summary.get("eval_teacher"):
        measured["teacher"] = summary["eval_teacher"]
    quality = Table(show_header=True, header_style="bold")
    quality.add_column("held-out")
    for name in measured:
        quality.add_column(name, justify="right")
    quality.add_row("loss", *(show_number(found.get("loss")) for found in measured.values()))
    shown = [key for key in _QUALITY if any(key in found for found in measured.values())]
    if not shown:
        quality.add_row("perplexity", *(show_number(found.get("perplexity"), 2) for found in measured.values()))
        if any("bits_per_byte" in found for found in measured.values()):
            quality.add_row("bits per byte", *(show_number(found.get("bits_per_byte")) for found in measured.values()))
    for key in shown or ["exact_match"]:
        quality.add_row(key.replace("_", " "), *(show_percent(found.get(key)) for found in measured.values()))
    if len({found["tokens"] for found in measured.values() if found.get("tokens") is not None}) > 1:
        # losses over other tokens do not compare: those of examples may leave prompts out
        quality.add_row("tokens in the loss", *(show_count(found.get("tokens")) for found in measured.values()))

    params, trainable = summary.get("num_params"), summary.get("num_trainable")
    share = trainable / params if params and trainable is not None else None
    usd = summary.get("usd")
    cached = " (read from the compilation cache)" if summary.get("compiled_from_cache") else ""
    stopped, best = summary.get("stopped_early"), summary.get("best_step")
    waited, share_waited = (summary.get("phases") or {}).get("data_wait"), summary.get("data_wait_share")
    waiting = f"{show_seconds(waited)} ({show_percent(share_waited)} of the steps' time)" if share_waited else None
    kwh, gas = summary.get("kwh"), summary.get("gco2e")
    how = str(summary.get("energy_source", "")).split(":")[0]
    energy = None if kwh is None else f"{show_energy(kwh)} ({how})" + ("" if gas is None else f", {gas:,.3g} gCO2e")
    rows = (
        ("steps", show_count(summary.get("steps"))),
        *([("stopped early", f"{stopped['rule']}: {stopped['message']}")] if stopped else []),
        *([("best step", show_count(best))] if best is not None else []),
        ("tokens/s", show_count(summary.get("tokens_per_second"))),
        ("peak memory", show_bytes(summary.get("peak_memory_bytes"))),
        ("a step's memory", _both(summary, "memory_bytes", show_bytes)),
        ("a step's seconds", _both(summary, "step_seconds", show_seconds)),
        ("seconds", show_seconds(summary.get("seconds"))),
        ("  in training steps", show_seconds(summary.get("train_seconds"))),
        ("  compiling the step", show_seconds(summary.get("compile_seconds")) + cached),
        *([("  waiting for data", waiting)] if waiting else []),
        ("devices busy", f"{show_percent(summary.get('accelerator_utilization'))} of the time, in steps"),
        ("cost", show_usd(usd) if usd is not None else "- (price unknown: set cost.usd_per_hour)"),
        *([("energy", energy)] if energy else []),
        ("trainable", f"{show_count(trainable)} of {show_count(params)} ({show_percent(share)})"),
        # of all weights what is written is a model
        ("model" if adapter is not None and Path(adapter).name == "model" else "adapter", str(adapter or "-")),
    )
    cost = Table(show_header=False)
    cost.add_column(style="bold")
    cost.add_column(overflow="fold")
    for row in rows:
        cost.add_row(*row)
    console = console if console is not None else Console()
    if any(measured.values()):
        console.print(quality)
    else:
        console.print("held-out data: none, so quality was not measured (data.eval, data.eval_fraction)")
    console.print(cost)
