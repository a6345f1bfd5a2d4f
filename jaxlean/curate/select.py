"""`jaxlean select`: of an unlabelled pool the rows most worth a label, in a file to be filled in (active learning).

The loop is the user's: train on what has labels, select with what was trained, fill in the labels, and train on both.

    jaxlean select CONFIG --pool pool.csv -n 300 -o first.csv                          # nothing has a label yet
    jaxlean finetune CONFIG data.train=first.csv
    jaxlean select CONFIG data.train=first.csv --pool pool.csv -n 100 -o second.csv --adapter runs/x/adapter
    jaxlean finetune CONFIG 'data.train=[first.csv,second.csv]' --overwrite

Where little is learned yet a model's doubts mean nothing, so rows are chosen that stand for many others; then those
that the model is unsure of, no two alike. `data/acquisition.py` has the strategies and their sources.
"""

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxlean.config import RunConfig, SourceSection
from jaxlean.curate.pool import Pool, read_pool
from jaxlean.data import acquisition
from jaxlean.data.clusters import unit
from jaxlean.data.columns import label_column
from jaxlean.data.diversity import apart, k_center
from jaxlean.data.files import Row
from jaxlean.data.labelled import LabelEncoder
from jaxlean.data.source import must_be_an_id, open_rows
from jaxlean.data.tokenize import Ragged, Tokens
from jaxlean.errors import ConfigError, DataError, ModelError, RunError, did_you_mean
from jaxlean.hub.load import Model
from jaxlean.run.evaluate import loaded
from jaxlean.run.job import head_labels, resolved
from jaxlean.run.lock import FolderLock
from jaxlean.run.merge import with_labels_of
from jaxlean.run.texts import judged, text_probabilities, vectors_of
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh, split_host

_OF_DOUBT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "least_confidence": acquisition.least_confidence,
    "margin": acquisition.margin,
    "entropy": acquisition.entropy,
}
_OF_MODEL = (*_OF_DOUBT, "bald", "uncertain_clusters")
STRATEGIES = ("auto", "random", "typical", "k_center", *_OF_MODEL)
# `auto`: until there are so many labelled rows of each label, what stands for many others; then what the model doubts.
_TYPICAL_UNTIL = 4
_ADDED = ("select_rank", "select_row", "select_score", "select_guess", "select_probability")


@dataclass(frozen=True)
class Picked:
    """The chosen rows, the first the most worth a label.

    Attributes:
        at: int [n], places among the rows of a `Pool`.
        score: float [n], of the strategy; None: it has none.
        guess: (label, its probability) of each; None: no model was trained for the labels.
    """

    at: np.ndarray
    score: np.ndarray | None
    guess: list[tuple[str, float]] | None


def select(
    config: RunConfig,
    pool: Path,
    output: Path,
    num: int,
    *,
    strategy: str = "auto",
    adapter: Path | None = None,
    labelled: Path | None = None,
    passes: int = 10,
    overwrite: bool = False,
) -> str:
    """Choose rows of a pool and write them for annotators.

    Args:
        config: of `task: classify`; `model`, `data` (columns, labels, max_length, on_long), `mesh`, `seed`,
            `eval.per_device_eval_batch_size` and, for `bald`, `lora.lora_dropout` count.
        pool: rows with the text's column. Those with a label already, or whose text has one or stands in `data.eval`,
            are not chosen.
        output: .csv or .jsonl: the rows in the order of their worth, the label's column empty, and beside it
            `select_rank`, `select_row` (in the pool, from 1), `select_score`, `select_guess`, `select_probability`.
        num: rows to choose.
        strategy: one of `STRATEGIES`.
        adapter: PEFT adapter folder, trained for the labels; not needed where the model was.
        labelled: rows with labels; default: `data.train`, if the config names it.
        passes: of `bald`.
        overwrite: replace the output, where it is there already; never the pool, nor rows that have labels.

    Returns:
        what was done, to be printed.

    Raises:
        UserError: a task without labels, a strategy that needs a trained model and has none, a label that the trained
            one does not know, fewer rows than are to be
            chosen, a column that is missing, vectors that are no numbers, a file that cannot be written,
            or that is there already.
    """
    _check(config, output, num, strategy, adapter, passes)
    source = SourceSection(path=str(pool))
    named = [SourceSection(path=str(labelled))] if labelled is not None else config.data.train or []
    held_out = config.data.eval or []
    _check_free(output, pool, [*named, *(config.data.train or []), *held_out], overwrite)
    rows = open_rows(source)
    if labelled is None:
        _check_there("data.train", named, "labelled yet")
    _check_there("data.eval", held_out, "held out")
    config, sources = _told(with_labels_of(adapter, config), named, source, held_out)
    trained = adapter is not None or head_labels(config) is not None
    split_host(config.mesh.host_devices)
    use_cache(config.compilation_cache)
    mesh = make_mesh(config.mesh.model_copy(update={"auto": False}))
    plain = loaded(config.model_copy(update={"task": "embed"}), mesh, None)
    model = _model(config, strategy, mesh, adapter) if trained or strategy in _OF_MODEL else None
    there = read_pool(
        config, rows, sources, held_out, _encoder(config, plain), None if model is None else _encoder(config, model)
    )
    column = config.data.label_column or "label"
    if num > len(there.at):
        raise DataError(
            "fewer rows to choose from than are to be chosen", where=pool,
            got=f"{len(there.at):,} of {len(rows):,} rows{there.left_out}", wanted=f"{num:,}",
            fix=f"a smaller -n; or data.label_column=NAME, if the labels are not those in the column {column!r}",
        )  # fmt: skip
    why = ""
    if strategy == "auto":
        enough = _TYPICAL_UNTIL * len(config.data.labels or [])
        few = len(there.labelled) < enough
        if few and trained:
            why = f" (auto: until {enough:,} rows have a label; data.train or --labelled names them)"
        elif there.labelled and not trained:
            why = " (auto: what a model doubts is not known without --adapter, the one that the labelled rows trained)"
        strategy = "typical" if few or not trained else "uncertain_clusters"
    picked = _pick(config, strategy, num, there, plain, model, mesh, passes)
    with FolderLock(output, beside=True) as lock:
        lock.acquire()
        _write(output, there, picked, column)
    return (
        f"pool: {len(there.at):,} of {len(rows):,} rows to choose from{there.left_out}; "
        f"labelled: {len(there.labelled):,}\n{num:,} rows by {strategy}{why}, {column!r} to be filled in: {output}"
    )


# ---- what there is


def _check(config: RunConfig, output: Path, num: int, strategy: str, adapter: Path | None, passes: int) -> None:
    if config.task != "classify":
        raise ConfigError(
            f"select chooses texts that are to have a label, not rows of task: {config.task}",
            fix="task=classify, with an encoder",
        )
    if strategy not in STRATEGIES:
        raise ConfigError("no such strategy", where="--strategy", got=strategy, wanted=", ".join(STRATEGIES),
                          fix=did_you_mean(strategy, STRATEGIES))  # fmt: skip
    if num < 1:
        raise ConfigError("nothing is to be chosen", where="-n", got=num, wanted="1 or more")
    if output.suffix not in (".csv", ".jsonl"):
        raise ConfigError("rows for annotators are a .csv or .jsonl file", where="--output", got=output)
    if output.is_dir() or not output.parent.is_dir():
        raise RunError("the file for the rows lies in a folder that is not there", where=output)
    if strategy == "bald":
        if passes < 2:
            raise ConfigError("BALD asks where passes disagree", where="--passes", got=passes, wanted="2 or more")
        if adapter is None:
            raise ConfigError(
                "BALD draws models by the dropout of an adapter, and none is named", fix="--adapter FOLDER"
            )
        if config.lora is None or not config.lora.lora_dropout:
            raise ConfigError(
                "BALD draws models by the dropout of the adapter, which has none", where="lora.lora_dropout",
                got="lora: null" if config.lora is None else config.lora.lora_dropout, wanted="above 0",
                fix="lora.lora_dropout=0.1, in training and here",
            )  # fmt: skip


def _check_free(output: Path, pool: Path, sources: Sequence[SourceSection], overwrite: bool) -> None:
    """Refuse to write over what was read, whatever is asked, and over what is there unless it is asked."""
    if not output.exists():
        return
    for what, path in (("the pool", pool), *(("rows that have labels", Path(source.path)) for source in sources)):
        if path.exists() and (path.samefile(output) or path.resolve() in output.resolve().parents):
            raise RunError(f"the chosen rows would replace {what}", where=output, fix="another name for --output")
    if not overwrite:
        raise RunError(
            "the file for the rows is there already, and may have been annotated", where=output,
            fix="another name for --output, or --overwrite",
        )  # fmt: skip


def _check_there(key: str, sources: Sequence[SourceSection], what: str) -> None:
    """Refuse files of the config that are not there, of which a first choice has no need."""
    for source in sources:
        if "://" not in source.path and not Path(source.path).exists():
            try:
                must_be_an_id(source.path)
            except DataError:
                raise DataError(
                    f"{key} names a file that is not there", where=source.path,
                    fix=f"{key}=FILE; or {key}=null, where nothing is {what}",
                ) from None  # fmt: skip


def _told(
    config: RunConfig, sources: Sequence[SourceSection], pool: SourceSection, held_out: Sequence[SourceSection]
) -> tuple[RunConfig, Sequence[SourceSection]]:
    """(the config with its columns, and its labels where there are any; the sources that have labels)."""
    if sources:
        data = config.data.model_copy(update={"train": sources, "eval": None, "eval_fraction": 0.0})
        return resolved(config.model_copy(update={"data": data}), trains=False), sources
    # nobody knows the labels yet, and none is asked for
    unknown = config.data.labels is None and head_labels(config) is None
    update = {"eval": [pool], "labels": ["?", "??"] if unknown else config.data.labels}
    asked = config.model_copy(update={"data": config.data.model_copy(update=update)})
    try:  # the column that is to be filled in may be there already, under one of the names that are known
        found = resolved(asked, trains=False)
    except DataError:
        found = resolved(asked, labelled=False, trains=False)
        if held_out and found.data.label_column is None:  # both files will be read by one config
            column = label_column("classify", held_out[0])
            found = found.model_copy(update={"data": found.data.model_copy(update={"label_column": column})})
    labels = None if unknown else found.data.labels
    return found.model_copy(update={"data": found.data.model_copy(update={"labels": labels})}), []


# ---- choosing


def _model(config: RunConfig, strategy: str, mesh: jax.sharding.Mesh, adapter: Path | None) -> Model:
    """The model that knows the labels."""
    if config.data.labels is None and adapter is not None:
        raise ModelError(
            "the adapter does not say what its labels are", where=adapter / "config.json", wanted="id2label",
            fix="data.labels=[...], in the order in which it was trained for them",
        )  # fmt: skip
    if config.data.labels is None:
        raise ModelError(
            f"--strategy {strategy} asks what a trained model is unsure of, and no label is known yet",
            where=config.model.path, fix="--strategy typical for a first set of rows, then --adapter FOLDER",
        )  # fmt: skip
    model = loaded(config, mesh, adapter)
    if adapter is None and model.drawn:
        raise ModelError(
            f"--strategy {strategy} asks what a trained model is unsure of, and this one has no head for these labels",
            where=config.model.path, got=f"no {', '.join(sorted(map(model.names.tensor, model.drawn)))}",
            fix="--adapter FOLDER; or --strategy typical, which needs no labels",
        )  # fmt: skip
    return model


def _encoder(config: RunConfig, model: Model) -> LabelEncoder:
    """Of texts that have no label, for this model."""
    return LabelEncoder(config, model.tokenizer, vocab_size=model.config.vocab_size, blind=True)


def _pick(
    config: RunConfig, strategy: str, num: int, there: Pool, plain: Model, model: Model | None,
    mesh: jax.sharding.Mesh, passes: int,
) -> Picked:  # fmt: skip
    size, seed = len(there.at), config.seed
    chosen = size + np.arange(len(there.labelled))
    if strategy in _OF_MODEL:
        assert model is not None
        if strategy == "bald":
            assert config.lora is not None
            rate = config.lora.lora_dropout
            draws = (_probabilities(config, there.judged, model, mesh, rate, seed * passes + i) for i in range(passes))
            score, found = acquisition.bald(draws)
        else:
            found = _probabilities(config, there.judged, model, mesh)
            score = _OF_DOUBT.get(strategy, acquisition.margin)(found)
        if strategy == "uncertain_clusters":
            at = acquisition.uncertain_clusters(_vectors(config, there.tokens, plain, mesh), score, num, seed=seed)
        else:
            at = np.argsort(-score, kind="stable")[:num]
        return Picked(at, score[at], _guesses(config, found[at]))
    worth: np.ndarray | None = None
    every = [*there.tokens, *there.labelled]
    if strategy == "typical":
        at, worth = acquisition.typical(_vectors(config, every, plain, mesh), num, chosen=chosen, seed=seed)
    elif strategy == "k_center":
        vectors = _vectors(config, every, plain, mesh)
        at = k_center(vectors, num, chosen=chosen if len(chosen) else None, seed=seed)
        worth = apart(vectors, at, chosen)
    else:
        at = np.random.default_rng(seed).permutation(size)[:num]
    guess = None
    if model is not None:
        guess = _guesses(config, _probabilities(config, [there.judged[i] for i in at], model, mesh))
    return Picked(at, worth, guess)


def _vectors(config: RunConfig, tokens: list[Tokens], model: Model, mesh: jax.sharding.Mesh) -> np.ndarray:
    """float32 [rows, hidden], unit vectors of the model before it was trained."""
    rows, length = config.eval.per_device_eval_batch_size, config.data.max_length
    found = vectors_of(Ragged.of(tokens), model, mesh, rows=rows, max_length=length)
    broken = ~np.isfinite(found).all(axis=1)
    if broken.any():
        first = tokens[int(broken.argmax())].origin
        raise DataError(
            "the model gives a vector that is not a number", where=first, got=f"so of {int(broken.sum()):,} rows",
            fix="model.dtype=float32; if it stays, the model's files are broken",
        )  # fmt: skip
    return unit(found)


def _probabilities(
    config: RunConfig, tokens: list[Tokens], model: Model, mesh: jax.sharding.Mesh, dropout: float = 0.0, key: int = 0
) -> np.ndarray:
    """float32 [rows, labels]."""
    found = np.full((len(tokens), len(config.data.labels or [])), np.nan, np.float32)
    say = text_probabilities(model, mesh, dropout=dropout, key=key)
    for said in judged(
        Ragged.of(tokens), say, model.params, mesh, rows=config.eval.per_device_eval_batch_size,
        packing=config.data.packing, max_length=config.data.max_length,
    ):  # fmt: skip
        found[said.number] = said.batch["probabilities"][said.row, said.at[0]]
    if not np.isfinite(found).all():
        broken = tokens[int((~np.isfinite(found)).any(axis=1).argmax())].origin
        raise DataError("the model gives probabilities that are not numbers", where=broken, fix="model.dtype=float32")
    return found


def _guesses(config: RunConfig, probabilities: np.ndarray) -> list[tuple[str, float]]:
    labels = config.data.labels or []
    return [(labels[int(row.argmax())], float(row.max())) for row in probabilities]


# ---- writing


def _write(output: Path, there: Pool, picked: Picked, column: str) -> None:
    lines: list[Row] = []
    for rank, at in enumerate(picked.at):
        number = int(there.at[at])
        guess, probability = picked.guess[rank] if picked.guess is not None else (None, None)
        score = None if picked.score is None or not np.isfinite(picked.score[rank]) else float(picked.score[rank])
        lines.append(there.rows[number] | {column: ""} | dict(zip(
            _ADDED, (rank + 1, number + 1, _short(score), guess, _short(probability)), strict=True,
        )))  # fmt: skip
    partial = output.with_name(output.name + ".tmp")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            if output.suffix == ".csv":
                columns = dict.fromkeys(name for line in lines for name in line)
                writer = csv.DictWriter(file, list(columns), lineterminator="\r\n")  # then a lone \r is quoted too
                writer.writeheader()
                writer.writerows(lines)
            else:
                file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        os.replace(partial, output)
    except OSError as error:
        raise RunError("the chosen rows cannot be written", where=output, got=error) from error


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 6)
