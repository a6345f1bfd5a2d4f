"""Which head an encoder gets: that of the task asked for, or that which its files were saved with."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jaxlean.errors import ModelError
from jaxlean.hub.family import Family
from jaxlean.hub.head import ARCHITECTURES, label_settings
from jaxlean.hub.names import Names
from jaxlean.hub.sentence import Sentence, read_sentence
from jaxlean.models.encoder import EncoderConfig

Task = Literal["generate", "classify", "tag", "embed"]
_HEAD = "classifier."
_SCORES = "classifier.scores."


def task_of(raw: Mapping[str, Any]) -> Task:
    """What an encoder was saved for, by the class in its `config.json`; without a classifier it is to embed."""
    names = raw.get("architectures") or []
    if any(str(name).endswith("ForImageClassification") for name in names):
        return "classify"
    tasks: tuple[Task, ...] = ("classify", "tag")
    return next((task for task in tasks if any(str(name).endswith(ARCHITECTURES[task]) for name in names)), "embed")


def with_head(
    family: Family,
    config: Any,
    raw: dict[str, Any],
    *,
    task: Task | None,
    labels: Sequence[str] | None,
    num_labels: int,
    folder: Path | None,
) -> tuple[Any, dict[str, Any]]:
    """The config of a model with its head, and the `config.json` that says so.

    Args:
        family: of the model.
        config: of the model without a head.
        raw: its `config.json`.
        task: None: what the model was saved for.
        labels: names in the order of their ids; None: those of `raw`.
        num_labels: how many those are.
        folder: may hold what sentence-transformers says of pooling.

    Raises:
        ModelError: the task is not one of this kind of model.
    """
    if family.classifier is not None:
        return config, raw  # `with_image_head` has seen to it
    if not family.heads:
        if task not in (None, "generate"):
            raise ModelError(
                f"{family.model_type} is no encoder, and task: {task} needs one", where=folder,
                fix="task: generate, or a model of BERT's kind (`jaxlean models` lists them)",
            )  # fmt: skip
        return config, raw
    wanted = task or task_of(raw)
    if wanted == "generate":
        raise ModelError(
            f"{family.model_type} is an encoder, which does not generate",
            where=folder,
            fix="task: classify, tag or embed",
        )
    assert isinstance(config, EncoderConfig)
    if wanted == "embed":
        said = read_sentence(folder) if folder is not None else Sentence()
        config = replace(config, head=wanted, pooling=said.pooling, normalize=said.normalize)
    else:
        config = replace(config, head=wanted, num_labels=len(labels) if labels is not None else num_labels)
    if task is None and labels is None:
        return config, raw
    named = label_settings(labels) if labels is not None and wanted != "embed" else {}
    architecture = family.architecture.removesuffix("Model") + ARCHITECTURES[wanted]
    return config, raw | named | {"architectures": [architecture]}


def with_image_head(
    family: Family, raw: dict[str, Any], *, task: Task | None, labels: Sequence[str] | None
) -> dict[str, Any]:
    """The `config.json` of a model of images with the head of a task; of all others as it is. Args as of `with_head`.

    Raises:
        ModelError: the task is not one of images.
    """
    if family.classifier is None or (task is None and labels is None):
        return raw
    if task not in (None, "classify"):
        raise ModelError(f"{family.model_type} is a model of images", got=f"task: {task}", wanted="task: classify")
    named = label_settings(labels) if labels is not None else {}
    return {key: x for key, x in raw.items() if key != "num_labels"} | named | {"architectures": [family.classifier]}


def is_headless(config: Any) -> bool:
    """Whether the model is an encoder without a classifier, whose files' names have no prefix."""
    return getattr(config, "head", "generate") in ("none", "embed")


def not_in_files(
    paths: Collection[str],
    names: Names,
    stored: Collection[str],
    *,
    raw: Mapping[str, Any],
    labels: Sequence[str] | None,
) -> frozenset[str]:
    """The parameters of the head that are to be drawn, since the files have none for this task and these labels.

    Of files that were saved with such a head none is drawn, so that a tensor that lacks is an error.

    Args:
        paths: of all parameters.
        names: of the model's tensors.
        stored: the names in its files.
        raw: the `config.json` of the files.
        labels: the labels asked for; None: those of the files.
    """
    head = {path for path in paths if path.startswith(_HEAD)}
    if not head:
        return frozenset()
    if task_of(raw) == names.head and (labels is None or _same(labels, raw)):
        return frozenset()
    scores = (_SCORES,) if any(path.startswith(_SCORES) for path in head) else (_HEAD,)
    return frozenset(path for path in head if path.startswith(scores) or names.tensor(path) not in stored)


def _same(labels: Sequence[str], raw: Mapping[str, Any]) -> bool:
    """Whether labels are those of a `config.json`, or it has as many without names."""
    named = raw.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    known = [str(named[key]) for key in sorted(named, key=int)]
    unnamed = all(name == f"LABEL_{i}" for i, name in enumerate(known))
    return len(known) == len(labels) if unnamed else known == list(labels)
