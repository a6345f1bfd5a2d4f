"""The batches that a model is trained and judged on: of tokens, or of images, by what it is called with."""

from collections.abc import Sequence
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.data.batches import Batches, EvalBatches
from jaxlean.data.curriculum import Losses
from jaxlean.data.image_batches import image_batches, image_eval_batches
from jaxlean.data.images import Preprocess, read_preprocess
from jaxlean.data.loader import eval_batches, train_batches
from jaxlean.errors import ModelError
from jaxlean.hub.load import Model
from jaxlean.run.image import image_of


def tokenizer_of(model: Model, template: str | None = None) -> Any:
    """The model's tokenizer, with the config's chat template if it has one; None of a model of images."""
    if image_of(model) is not None:
        return None
    if template is not None:
        model.tokenizer.chat_template = template
    return model.tokenizer


def batches_of(
    config: RunConfig,
    model: Model,
    tokenizer: Any,
    *,
    rows: int,
    held: Sequence[int] | None = None,
    losses: Losses | None = None,
) -> Batches:
    """The training batches.

    Args:
        config: resolved.
        model: its files say how images are made.
        tokenizer: as of `tokenizer_of`.
        rows: of a step.
        held: of these, the ones that this process lays out.
        losses: measures the base's loss of each row (`data.curriculum.difficulty: loss`).

    Raises:
        UserError: the data, or how images are made, are not what the model needs.
    """
    if image_of(model) is None:
        how: dict[str, Any] = {"vocab_size": model.config.vocab_size, "held": held, "losses": losses}
        return train_batches(config, tokenizer, rows_per_step=rows, **how)
    preprocess = _preprocess(model)
    return image_batches(config, preprocess, rows_per_step=rows, length=model.config.num_tokens, held=held)


def held_out(
    config: RunConfig, model: Model, tokenizer: Any, *, rows: int, held: Sequence[int] | None = None
) -> EvalBatches:
    """The held-out batches. Args, errors: as `batches_of`."""
    if image_of(model) is None:
        return eval_batches(config, tokenizer, rows=rows, vocab_size=model.config.vocab_size, held=held)
    return image_eval_batches(config, _preprocess(model), rows=rows, length=model.config.num_tokens, held=held)


def _preprocess(model: Model) -> Preprocess:
    assert model.folder is not None, "a model of images is read from files"
    found = read_preprocess(model.folder)
    if (*found.shape, 3) != image_of(model):
        raise ModelError(
            "the images that preprocessor_config.json makes are not those of the model", where=model.folder,
            got=f"height and width {found.shape}, 3 channels", wanted=image_of(model),
            fix="set its size (and crop_size) to the image_size of config.json",
        )  # fmt: skip
    return found
