"""`jaxlean predict`: the labels or vectors that a model gives for the rows of a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.labelled import LabelEncoder
from jaxlean.data.source import open_rows
from jaxlean.data.tokenize import Counts, Ragged, Tokens
from jaxlean.errors import ConfigError, DataError, ModelError, RunError
from jaxlean.run.evaluate import loaded
from jaxlean.run.image import image_of
from jaxlean.run.job import head_labels, resolved
from jaxlean.run.lock import FolderLock
from jaxlean.run.losses import judge_of
from jaxlean.run.merge import with_labels_of
from jaxlean.run.quality import make_judge_step
from jaxlean.run.texts import Said, judged
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh, split_host

# A column of texts to be embedded, where the config does not name one.
_TEXTS = ("text", "sentence", "anchor", "positive", "query", "question", "answer", "passage", "document")


def predict(config: RunConfig, file: Path, output: Path, *, adapter: Path | None = None) -> int:
    """Write what a model says of each row of a file.

    Args:
        config: `task`, `model`, `data` (columns, labels, max_length, on_long, packing), `mesh` and
            `eval.per_device_eval_batch_size` count. The `config.yaml` of a run knows its columns and labels.
        file: rows with the text's column, of any kind that training data may be.
        output: JSON lines, the rows with `prediction` added: of a text its label (and `probability`), of words a list
            of them. Of `task: embed` a `.npy` file: float32 [rows, hidden].
        adapter: PEFT adapter folder.

    Returns:
        rows written.

    Raises:
        UserError: a task without labels or vectors, a row that has no text, a file that cannot be written, a model
            that was never trained for these labels, or an adapter that was trained for others.
    """
    _check(config, file, output)
    source = SourceSection(path=str(file))
    rows = open_rows(source)
    config = _told(with_labels_of(adapter, config), source, list(rows[0]))
    split_host(config.mesh.host_devices)
    use_cache(config.compilation_cache)
    mesh = make_mesh(config.mesh.model_copy(update={"auto": False}))
    model = loaded(config, mesh, adapter)
    if image_of(model) is not None:
        raise ConfigError(
            "predict reads texts, and this is a model of images", where=config.model.path,
            fix="jaxlean.load(path)(pixels) in Python gives the logits of images",
        )  # fmt: skip
    if adapter is None and model.drawn:
        raise ModelError(
            f"the model has no head for task: {config.task} with these labels: it would only guess",
            where=config.model.path, got=f"no {', '.join(sorted(map(model.names.tensor, model.drawn)))}",
            fix="--adapter FOLDER, or a model that was trained for them",
        )  # fmt: skip
    encoder = LabelEncoder(config, model.tokenizer, vocab_size=model.config.vocab_size, blind=True)
    make = encoder.reader(rows[0], source.path)
    origins = [rows.origin(i) for i in range(len(rows))]
    made: list[Tokens | None] = list(
        encoder.encode(((make(row, origin), origin) for row, origin in zip(rows, origins, strict=True)), Counts())
    )
    kept = [i for i, tokens in enumerate(made) if tokens is not None]
    if not kept:
        raise DataError("no row is left", where=file, got=f"all {len(rows)} dropped for their length")
    examples = Ragged.of(tokens for tokens in made if tokens is not None)
    step = make_judge_step(judge_of(config, model, mesh))
    found: dict[int, Any] = {}
    for said in judged(
        examples, lambda params, batch: step({}, params, batch)[2], model.params, mesh,
        rows=config.eval.per_device_eval_batch_size, packing=config.data.packing, max_length=config.data.max_length,
    ):  # fmt: skip
        found[kept[said.number]] = _of_one(config, said)
    partial = output.with_name(f".{output.name}.part")
    with FolderLock(output, beside=True) as lock:
        lock.acquire()
        try:
            with partial.open("wb") as opened:
                if config.task == "embed":
                    np.save(opened, _vectors(found, len(rows)))
                else:
                    lines = (json.dumps(line, ensure_ascii=False, default=str) for line in _lines(config, rows, found))
                    opened.writelines(f"{line}\n".encode() for line in lines)
            partial.replace(output)
        except OSError as error:
            raise RunError("the predictions cannot be written", where=output, got=error) from error
    return len(rows)


def _check(config: RunConfig, file: Path, output: Path) -> None:
    if config.task == "generate":
        raise ConfigError("task: generate has no labels to predict", fix="jaxlean generate, or task=classify")
    wanted = ".npy" if config.task == "embed" else ".jsonl"
    if output.suffix != wanted:
        raise ConfigError(f"the predictions of task: {config.task} are a {wanted} file", where="--output", got=output)
    if output.is_dir() or not output.parent.is_dir():
        raise RunError("the file for the predictions lies in a folder that is not there", where=output)
    if output.exists() and file.exists() and (output.samefile(file) or file.resolve() in output.resolve().parents):
        raise RunError("the predictions would replace the rows they are of", where=output, fix="another --output")


def _told(config: RunConfig, source: SourceSection, columns: list[str]) -> RunConfig:
    """The config with the columns and labels that are needed, and one text's column.

    The training data, which may not be here, are asked only for labels that nothing else tells.
    """
    if not (config.data.train or config.data.eval) or config.data.labels is not None or head_labels(config) is not None:
        data = config.data.model_copy(update={"train": None, "eval": [source]})
        config = config.model_copy(update={"data": data})
    if config.task != "embed":
        return resolved(config, labelled=False, trains=False)
    named = config.data.text_column
    if not isinstance(named, str):
        there = [name for name in named or _TEXTS if name in columns]
        if len(there) != 1:
            raise DataError(
                "it is not clear which column is to be embedded", where=source.path,
                got=f"columns {', '.join(columns)}", fix="data.text_column=NAME",
            )  # fmt: skip
        named = there[0]
    return config.model_copy(update={"data": config.data.model_copy(update={"text_column": named, "packing": False})})


def _of_one(config: RunConfig, said: Said) -> Any:
    """What is said of one text."""
    if config.task == "embed":
        return said.batch["vectors"][said.row]
    names = config.data.labels or []
    got = [names[int(i)] for i in said.batch["best"][said.row, said.at]]
    if config.task == "tag":
        return dict(zip(said.labels.tolist(), got, strict=True))
    return {"prediction": got[0], "probability": round(float(said.batch["probability"][said.row, said.at[0]]), 6)}


def _lines(config: RunConfig, rows: Any, found: dict[int, Any]) -> Iterator[dict[str, Any]]:
    """Each row with its prediction; null for a row that was dropped, and for words that were cut off."""
    for i, row in enumerate(rows):
        said = found.get(i)
        if config.task == "tag":
            words = row[config.data.text_column]
            num = len(json.loads(words) if isinstance(words, str) else words)
            yield row | {"prediction": None if said is None else [said.get(w) for w in range(num)]}
        else:
            yield row | (said or {"prediction": None, "probability": None})


def _vectors(found: dict[int, np.ndarray], num: int) -> np.ndarray:
    """float32 [num, hidden]: a row without a vector, dropped for its length, is not a number."""
    vectors = np.full((num, len(next(iter(found.values())))), np.nan, np.float32)
    for i, vector in found.items():
        vectors[i] = vector
    return vectors
