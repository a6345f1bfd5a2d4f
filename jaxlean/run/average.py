"""`jaxlean average`: adapters of parties that cannot share their data, averaged to one. No base is needed."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlean import tree
from jaxlean.adapt.average import Average, Method, average
from jaxlean.errors import ConfigError, ModelError, RunError
from jaxlean.hub import peft_tree
from jaxlean.hub.files import read_json
from jaxlean.hub.joined import apart, check_alike, joined
from jaxlean.hub.peft_tree import PeftTree
from jaxlean.run.folder import adapter_of
from jaxlean.run.merge import labels_of
from jaxlean.run.staging import check_output, staged
from jaxlean.run.units import show_percent

REPORT = "average.json"
# Below this share of the energy nothing is lost but what float32 cannot hold.
_NOTHING = 1e-12
# What may lie beside an adapter that has labels, or new tokens, and is needed with it.
_LABELS = ("config.json",)
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
)


class Source(NamedTuple):
    """One of the adapters."""

    name: str  # as it was given
    folder: Path  # its own
    summary: Path  # summary.json of the run that trained it, if it lies there


def average_adapters(
    folders: Sequence[Path],
    output: Path,
    *,
    weights: str | None = None,
    method: Method = "exact",
    rank: int | None = None,
    base: str | None = None,
) -> Average:
    """Write the weighted mean of adapters.

    Args:
        folders: of PEFT adapters, or output_dirs of finished runs.
        output: folder to be made.
        weights: `3,1,2`; or `tokens`, those that each run trained on; default: all count alike.
        method: `exact`, the mean of what the adapters add; `plain`, that of each matrix by itself.
        rank: of `exact`: the highest of the result.
        base: what the result names as its base; default: what the first one names.

    Raises:
        UserError: what the user can mend; nothing is written then.
    """
    check_output(output)
    sources = [_source(folder) for folder in folders]
    _check_each_once(sources)
    names = [source.name for source in sources]
    shares = _weights(weights, sources)
    adapters = [peft_tree.read(source.folder) for source in sources]
    check_alike(adapters, names)
    _check_labels(sources)
    _check_tokens(sources, adapters[0].settings)
    for name in apart(adapters, names):
        print(f"note: {name} shares no module with the others: is it over the same base?")
    stated = [adapter.settings.get("base_model_name_or_path") for adapter in adapters]
    base = base or stated[0]
    if len(set(stated)) > 1:
        print(
            f"note: the adapters name their base differently ({', '.join(map(str, stated))}); the result names {base}"
        )
    found = average([adapter.leaves for adapter in adapters], shares, method=method, rank=rank, names=names)
    kernels = {module: form for adapter in adapters for module, form in adapter.kernels.items()}
    parameters = frozenset[str]().union(*(adapter.parameters for adapter in adapters))
    whole = PeftTree(joined(adapters, base=base), found.adapter, kernels, parameters, adapters[0].over)
    with staged(output) as part:
        part.mkdir()
        peft_tree.write(part, whole)
        _copy_beside([source.folder for source in sources], part)
        report = _report(sources, stated, shares, found, method)
        (part / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(sources, adapters, shares, found, method)
    return found


def _source(folder: Path) -> Source:
    """Where the adapter of a folder lies. Raises: ModelError, RunError."""
    adapter = adapter_of(folder)
    run = folder.resolve().parent if adapter == folder else folder
    return Source(str(folder), adapter, run / "summary.json")


def _check_each_once(sources: Sequence[Source]) -> None:
    seen: dict[Path, str] = {}
    for source in sources:
        place = source.folder.resolve()
        if place in seen:
            raise ConfigError(
                "an adapter is given twice", where=source.name, got=f"it is {seen[place]}",
                fix="name it once; --weights says how much it counts",
            )  # fmt: skip
        seen[place] = source.name


def _weights(given: str | None, sources: Sequence[Source]) -> list[float]:
    """One number each. Raises: ConfigError, RunError."""
    if given is None:
        return [1.0] * len(sources)
    if given == "tokens":
        return [_tokens(source) for source in sources]
    try:
        found = [float(text) for text in given.split(",")]
    except ValueError:
        raise ConfigError(
            "--weights are numbers with commas between them, or tokens", got=given, wanted="3,1,2"
        ) from None
    if len(found) != len(sources):
        raise ConfigError(
            "--weights has not one number for each adapter", got=f"{len(found)}: {given}", wanted=str(len(sources))
        )
    return found


def _tokens(source: Source) -> float:
    wanted = "its tokens, the number that it trained on"
    fix = "give the folder that jaxlean finetune wrote, or the weights as numbers: --weights 3,1,2"
    if not source.summary.exists():
        raise RunError("--weights tokens: no summary.json of a run", where=source.summary, wanted=wanted, fix=fix)
    tokens = read_json(source.summary).get("tokens")
    if not isinstance(tokens, int) or tokens < 1:
        raise RunError(
            "--weights tokens: the run says of none",
            where=source.summary,
            got=f"tokens {tokens}",
            wanted=wanted,
            fix=fix,
        )
    return float(tokens)


def _check_labels(sources: Sequence[Source]) -> None:
    """The numbers of a head stand for labels: for the same ones in all. Raises: ModelError."""
    known = [(source.name, labels) for source in sources if (labels := labels_of(source.folder)) is not None]
    for name, labels in known[1:]:
        if labels != known[0][1]:
            raise ModelError(
                "adapters for other labels, or for another order of them", where=f"{name}/config.json",
                got=", ".join(labels), wanted=f"{', '.join(known[0][1])}, as in {known[0][0]}",
                fix="train all parties with one and the same data.labels",
            )  # fmt: skip


def _check_tokens(sources: Sequence[Source], stated: dict[str, Any]) -> None:
    """Rows that train stand for tokens: for the same ones in all, whatever their numbers. Raises: ModelError."""
    given = stated.get("trainable_token_indices") or stated.get("token_indices") or []
    ids = sorted({i for own in given.values() for i in own} if isinstance(given, dict) else given)
    if not ids:
        return
    from tokenizers import Tokenizer

    first: tuple[str, list[str | None]] | None = None
    for source in sources:
        file = source.folder / "tokenizer.json"
        if not file.exists():
            continue
        tokenizer = Tokenizer.from_file(str(file))
        tokens = [tokenizer.id_to_token(i) for i in ids]
        first = first or (source.name, tokens)
        other = next((k for k, (a, b) in enumerate(zip(tokens, first[1], strict=True)) if a != b), None)
        if other is not None:
            raise ModelError(
                "adapters whose new tokens are other words", where=file, got=f"{ids[other]}: {tokens[other]!r}",
                wanted=f"{first[1][other]!r}, as in {first[0]}",
                fix="train all parties with one and the same tokenizer",
            )  # fmt: skip


def _copy_beside(folders: Sequence[Path], part: Path) -> None:
    """What the first one has that has any, so that files that belong together stay so."""
    for names in (_LABELS, _TOKENIZER):
        found = ([folder / name for name in names if (folder / name).is_file()] for folder in folders)
        for file in next(filter(None, found), []):
            shutil.copyfile(file, part / file.name)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _report(
    sources: Sequence[Source], bases: Sequence[Any], weights: Sequence[float], found: Average, method: Method
) -> dict[str, Any]:
    """What `average.json` holds: what the mean is of. Shares are of the energy of the mean update."""
    rows: list[dict[str, Any]] = [
        {"adapter": source.name, "base": base, "weight": weight / sum(weights)}
        for source, base, weight in zip(sources, bases, weights, strict=True)
    ]
    for row, party in zip(rows, found.parties, strict=False):
        row |= party._asdict()
    report: dict[str, Any] = {"method": method, "rank": found.rank, "adapters": rows}
    if found.worst is not None:
        name, share = found.worst
        report |= {"lost": _finite(found.lost), "worst": {"module": name, "lost": _finite(share)}}
    return report


def _print(
    sources: Sequence[Source], adapters: Sequence[PeftTree], weights: Sequence[float], found: Average, method: Method
) -> None:
    from rich.console import Console
    from rich.table import Table

    caption = "norm: of what it adds; cosine: of the angle between that and the mean" if found.parties else None
    table = Table(show_header=True, header_style="bold", caption=caption, caption_justify="left")
    table.add_column("adapter", overflow="fold")
    for title in ("weight", "rank", "scale", "norm", "cosine"):
        table.add_column(title, justify="right")
    for i, (source, adapter) in enumerate(zip(sources, adapters, strict=True)):
        leaves = tree.flatten(adapter.leaves)
        ranks = [x.shape[-1] for path, x in leaves.items() if path.endswith(".lora_a")]
        scales = [float(s) for path, x in leaves.items() if path.endswith(".lora_scale") for s in np.ravel(x)]
        party = [f"{found.parties[i].norm:.4g}", f"{found.parties[i].cosine:.3f}"] if found.parties else ["-", "-"]
        table.add_row(source.name, f"{weights[i] / sum(weights):.4f}", _span(ranks), _span(scales), *party)
    console = Console()
    console.print(table)
    for line in _said(adapters, found, method):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _said(adapters: Sequence[PeftTree], found: Average, method: Method) -> list[str]:
    """What the mean is, in words."""
    if found.worst is None:
        return [f"{method}: the mean of each array by itself"]
    name, share = found.worst
    most = f"most in {name}: {show_percent(share)}"
    if method == "plain":
        return [
            "plain: each matrix averaged by itself",
            f"what that adds is off the mean of the updates by {show_percent(found.lost)} of its energy, {most}; "
            "--method exact is the mean",
        ]
    if found.lost < _NOTHING:
        most_of = sum(max(x.shape[-1] for p, x in tree.flatten(a.leaves).items() if p.endswith("_a")) for a in adapters)
        return [f"exact: rank {found.rank} holds the mean of the updates (the ranks of all together: {most_of})"]
    return [f"exact, cut to rank {found.rank}: {show_percent(found.lost)} of the mean update's energy is lost, {most}"]
