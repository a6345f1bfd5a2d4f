"""A short run of the config's own training on some of the rows, so that a model knows what the task is about."""

import json
from pathlib import Path

import numpy as np

from jaxlean.config import LoraSection, RunConfig
from jaxlean.config.selection import ShortRunSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.work import Work
from jaxlean.errors import ConfigError


def short_run(corpus: Corpus, alive: np.ndarray, config: RunConfig, settings: ShortRunSection, work: Work) -> Path:
    """The adapter of a short run: of one that there is already, or of one made now on a random share of the rows.

    Args:
        corpus: the rows.
        alive: bool [rows of the corpus], what is drawn from.
        config: as of `scoring.learned_from`.
        settings: of the run.
        work: of the step; the run lies in its folder.

    Raises:
        ConfigError: an adapter's folder that is not there.
        UserError: as of `finetune`.
    """
    if settings.adapter is not None:
        return given(settings.adapter)
    rows = np.flatnonzero(alive)
    drawn = shuffled(rows, config.seed)[: max(1, round(settings.fraction * len(rows)))]
    return trained(corpus, drawn, config, settings.num_train_epochs, work.folder / "run")


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """The same rows in a random order, from whose front a run takes its share."""
    return np.random.default_rng([seed, len(rows)]).permutation(rows)


def given(adapter: str) -> Path:
    """The folder of an adapter that the user names.

    Raises:
        ConfigError: it is not there.
    """
    if not Path(adapter).is_dir():
        raise ConfigError("the adapter's folder is not there", where="curate.steps: run.adapter", got=adapter)
    return Path(adapter)


def trained(corpus: Corpus, rows: np.ndarray, config: RunConfig, epochs: float, folder: Path) -> Path:
    """The adapter of a run on these rows, made now unless it is there already.

    It trains as `jaxlean finetune` would with the same config, but for what it reads and how long; what was killed goes
    on from its last checkpoint.

    Args:
        corpus: whose rows.
        rows: their numbers.
        config: as of `scoring.learned_from`.
        epochs: passes over them.
        folder: of the run.

    Raises:
        UserError: as of `finetune`.
    """
    if _is_completed(folder):
        return folder / "adapter"
    drawn = np.sort(rows)
    sources = []
    for number, source in enumerate(corpus.sources):
        own = drawn[corpus.source_of(drawn) == number]
        if len(own):
            file = folder.with_name(f"{folder.name}-rows-{number}.jsonl")
            _write(corpus, own, file)
            update = {"path": str(file), "split": "train", "name": None, "limit": None, "weight": None}
            sources.append(source.model_copy(update=update))
    run = config.model_copy(
        update={
            "output_dir": str(folder),
            "data": config.data.model_copy(
                update={"train": sources, "eval": None, "eval_fraction": 0.0, "streaming": False}
            ),
            "lora": config.lora or LoraSection(),
            "train": config.train.model_copy(update={"num_train_epochs": epochs, "max_steps": None, "trainable": None}),
            "mesh": config.mesh.model_copy(update={"auto": False}),
            "report": config.report.model_copy(update={"tensorboard": False, "wandb": False}),
        }
    )
    from jaxlean.run.finetune import finetune

    finetune(run, resume=folder.exists())
    return folder / "adapter"


def _is_completed(folder: Path) -> bool:
    try:
        said = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(said.get("status") == "completed")


def _write(corpus: Corpus, numbers: np.ndarray, file: Path) -> None:
    partial = file.with_name(f".{file.name}.part")
    with partial.open("w", encoding="utf-8") as opened:
        for item in corpus.items(numbers):
            opened.write(json.dumps(item.row, ensure_ascii=False, default=str) + "\n")
    partial.replace(file)
