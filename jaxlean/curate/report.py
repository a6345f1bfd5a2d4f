"""What was left out, and why: `report.json` for programs, `report.md` with examples and pictures for people."""

import importlib.util
import json
import resource
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from jaxlean import __version__
from jaxlean.cost.memory import process_peak_bytes
from jaxlean.curate.columns import as_json, merge
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, write_text
from jaxlean.curate.layout import data_train
from jaxlean.errors import DataError

_SHOWN_CHARS = 300  # of an example
_PICTURES = "histograms.png"
_NOT_LOOKED_FOR = (
    "Leakage was not looked for: no held-out data are named. data.eval=FILE names them; data.train=... on the command "
    "line leaves out those of the config."
)


@dataclass(frozen=True)
class Answer:
    """What a step did.

    Attributes:
        step: its name.
        settings: its settings.
        rows: that it was given.
        found: what it found.
        seconds: that it took.
    """

    step: str
    settings: dict[str, Any]
    rows: int
    found: Found
    seconds: float


def publish(
    folder: Path,
    corpus: Corpus,
    held_out: Corpus | None,
    schemas: Sequence[pa.Schema],
    chars: np.ndarray,
    alive: np.ndarray,
    answers: list[Answer],
    seconds: float,
) -> dict[str, Any]:
    """Write the report, `report.json` last.

    Args:
        folder: the output folder.
        corpus: all rows.
        held_out: rows that steps compare with, if any.
        schemas: the columns of each source.
        chars: [rows], of each row.
        alive: [rows] bool: stayed.
        answers: of the steps, in order.
        seconds: of the whole.

    Returns:
        What is in `report.json`.
    """
    per_source = np.bincount(corpus.source_of(np.flatnonzero(alive)), minlength=len(corpus.parts)).tolist()
    told = {
        "rows": len(corpus),
        "kept": int(alive.sum()),
        "characters": int(np.maximum(chars, 0).sum()),
        "kept_characters": int(np.maximum(chars[alive], 0).sum()),
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "sources": [
            {"path": source.path, "rows": len(part), "kept": kept}
            for source, part, kept in zip(corpus.sources, corpus.parts, per_source, strict=True)
        ],
        "held_out": [source.path for source in held_out.sources] if held_out else [],
        "data.train": data_train(folder, corpus, per_source),
        "columns_as_json": as_json(merge(schemas)),
        "steps": [_step(answer, corpus, held_out) for answer in answers],
        "jaxlean": __version__,
    }
    drawn = _draw(folder / _PICTURES, chars, alive, answers)
    write_text(folder / "report.md", _markdown(told, drawn))
    write_text(folder / "report.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    return told


def show(told: dict[str, Any], console: Console) -> None:
    """The report's table."""
    table = Table()
    table.add_column("step")
    for name in ("rows", "dropped", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for step in told["steps"]:
        why = ", ".join(f"{reason}: {count:,}" for reason, count in step["reasons"].items())
        table.add_row(step["step"], f"{step['rows']:,}", f"{step['dropped']:,}", f"{step['seconds']:.1f}", why)
    console.print(table)
    share = told["kept"] / told["rows"]
    console.print(f"{told['kept']:,} of {told['rows']:,} rows stay ({share:.1%}), in {told['seconds']:.1f} s")
    if not told["held_out"]:
        console.print(_NOT_LOOKED_FOR)
    if _needs_saying(told):
        console.print(f"to train on them: {_data_train(told)}", markup=False, soft_wrap=True)
    if told.get("columns_as_json"):  # not in reports of before
        console.print(f"columns {_as_json(told)}", markup=False, soft_wrap=True)


def _needs_saying(told: dict[str, Any]) -> bool:
    """Whether `data.train=FOLDER` is not all there is to it."""
    return len(told["data.train"]) > 1 or len(told["data.train"][0]) > 1


def _as_json(told: dict[str, Any]) -> str:
    return (
        f"written as JSON, since Parquet has one kind of value a column: {', '.join(told['columns_as_json'])}; jaxlean "
        "reads the values as they were"
    )


def _data_train(told: dict[str, Any]) -> str:
    return shlex.quote("data.train=" + json.dumps(told["data.train"], ensure_ascii=False))


def peak_memory_bytes() -> int:
    """Resident memory of this process at its peak, and of the largest that it started and has ended.

    Of itself it is not what `getrusage` says, which begins with the memory of the process that started it.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return process_peak_bytes() + unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def _step(answer: Answer, corpus: Corpus, held_out: Corpus | None) -> dict[str, Any]:
    found = answer.found
    return {
        "step": answer.step,
        "settings": answer.settings,
        "rows": answer.rows,
        "dropped": len(found.rows),
        "reasons": {reason: count for reason, count in found.counts().items() if count},
        "seconds": round(answer.seconds, 3),
        "notes": dict(found.notes),
        "examples": [
            _example(found, int(at), corpus, held_out)
            for code in range(len(found.reasons))
            for at in _spread(np.flatnonzero(found.codes == code), corpus.config.curate.examples)
        ],
    }


def _spread(at: np.ndarray, count: int) -> np.ndarray:
    """A few of many, from the first to the last."""
    return at if len(at) <= count else at[np.linspace(0, len(at) - 1, count).astype(np.int64)]


def _example(found: Found, at: int, corpus: Corpus, held_out: Corpus | None) -> dict[str, Any]:
    number = int(found.rows[at])
    told: dict[str, Any] = {"reason": found.reasons[found.codes[at]], "origin": corpus.origin(number)}
    if found.value is not None and not np.isnan(found.value[at]):
        told["value"] = round(float(found.value[at]), 4)
    told["text"] = _text(corpus, number)
    other = corpus if found.beside == "train" else held_out
    if found.of is not None and found.of[at] >= 0 and other is not None:
        told["beside"] = found.beside
        told["duplicate_of"] = other.origin(int(found.of[at]))
        told["its_text"] = _text(other, int(found.of[at]))
    return told


def _text(corpus: Corpus, number: int) -> str:
    try:
        text = next(corpus.words(np.array([number]))).text
    except DataError as error:
        return f"({error.what})"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ... ({len(text):,} characters)"


def _markdown(told: dict[str, Any], drawn: bool) -> str:
    share = told["kept"] / told["rows"]
    lines = [
        "# What was left out, and why",
        "",
        f"{told['kept']:,} of {told['rows']:,} rows stay ({share:.1%}), {told['kept_characters']:,} of "
        f"{told['characters']:,} characters. {told['seconds']:.1f} seconds, "
        f"{told['peak_memory_bytes'] / 1e6:,.0f} MB of memory.",
        "",
        "| step | rows | dropped | seconds |",
        "|---|---:|---:|---:|",
        *(f"| {s['step']} | {s['rows']:,} | {s['dropped']:,} | {s['seconds']:.1f} |" for s in told["steps"]),
        "",
        "| source | rows | stay |",
        "|---|---:|---:|",
        *(f"| {s['path']} | {s['rows']:,} | {s['kept']:,} |" for s in told["sources"]),
        "",
        *([] if told["held_out"] else [_NOT_LOOKED_FOR, ""]),
        *([f"To train on them: `{_data_train(told)}`", ""] if _needs_saying(told) else []),
        *([f"Columns {_as_json(told)}.", ""] if told["columns_as_json"] else []),
        f"![histograms]({_PICTURES})"
        if drawn
        else "No pictures: they need matplotlib (pip install 'jaxlean[curate]').",
    ]
    for step in told["steps"]:
        if not step["dropped"] and not step["notes"]:
            continue
        lines += ["", f"## {step['step']}", ""]
        lines += [f"- {name}: {value}" for name, value in step["notes"].items()]
        for reason, count in step["reasons"].items():
            lines += ["", f"### {reason}: {count:,}", ""]
            for example in (e for e in step["examples"] if e["reason"] == reason):
                value = f" ({example['value']:g})" if "value" in example else ""
                lines += [f"**{example['origin']}**{value}", "", _quoted(example["text"]), ""]
                if "duplicate_of" in example:
                    where = "held out" if example["beside"] == "eval" else "stays"
                    lines += [
                        f"{where}: **{example['duplicate_of']}**",
                        "",
                        _quoted(example["its_text"]),
                        "",
                    ]
    return "\n".join(lines).rstrip() + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _draw(file: Path, chars: np.ndarray, alive: np.ndarray, answers: list[Answer]) -> bool:
    """Histograms: lengths before and after, what decided in each step, each score. False without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    readable = chars > 0
    panels: list[tuple[str, list[np.ndarray], list[str], bool]] = [
        ("characters a row", [chars[readable], chars[alive & readable]], ["all", "stay"], True)
    ]
    for answer in answers:
        value = answer.found.value
        if value is not None and np.isfinite(value).any():
            panels.append((f"{answer.step}: what decided", [value[np.isfinite(value)]], ["dropped"], False))
        for name, score in answer.found.scores.items():
            known = np.isfinite(score)
            panels.append((f"{answer.step}: {name}", [score[known], score[known & alive]], ["all", "stay"], False))
    figure = Figure(figsize=(6, 3 * len(panels)), layout="constrained")
    for axes, (title, series, labels, logarithmic) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
    ):
        low, high = (float(f(series[0])) if len(series[0]) else 1.0 for f in (np.min, np.max))
        edges = np.geomspace(low, high + 1, 41) if logarithmic else np.linspace(low, high + 1e-6, 41)
        for values, label, colour in zip(series, labels, ("#c7c7c7", "#1f77b4"), strict=False):
            axes.hist(values, edges, label=label, color=colour)
        axes.set(title=title, ylabel="rows", xscale="log" if logarithmic else "linear")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper right")  # to look for the best place takes long, and on a busy machine warns of that
    figure.savefig(file, dpi=110, metadata={"Software": None})
    return True
