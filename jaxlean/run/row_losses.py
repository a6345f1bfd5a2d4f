"""How hard each row is for a model: the mean loss of the tokens that it learns from, one forward pass over the rows.

What a curriculum sorts by (`data.curriculum.difficulty: loss`), before anything has been learned.
"""

import jax
import numpy as np

from jaxlean.config import RunConfig
from jaxlean.data.batches import sequence_length
from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.tokenize import Ragged
from jaxlean.hub.load import Model
from jaxlean.models.layout import layout_on
from jaxlean.run.rows import OwnRows
from jaxlean.train.example_scores import completion_scores
from jaxlean.train.loss import chunk_budget
from jaxlean.xla.mesh import num_batch_shards
from jaxlean.xla.spread import fetch


def row_losses(config: RunConfig, model: Model, examples: Ragged, mesh: jax.sharding.Mesh) -> np.ndarray:
    """The mean cross entropy of each row's tokens that carry loss. All processes of a run must call it.

    Args:
        config: its `data.packing`, `data.max_length`, `train.per_device_train_batch_size` (sequences at a time) and
            `train.loss_chunk_bytes`. Rows are packed for it however the run packs them: none sees another.
        model: a decoder, its parameters on the mesh.
        examples: the rows as tokens (of a row's first token there is no loss, whatever its mask says).
        mesh: the sequences of a batch are split over it.

    Returns:
        float64 [examples], in nats a token; NaN of a row without a token that carries loss.
    """
    found = np.zeros(len(examples), np.float64)
    tokens = np.zeros(len(examples), np.int64)
    if not len(examples):
        return found
    rows = config.train.per_device_train_batch_size * num_batch_shards(mesh)
    longest = max(config.data.max_length, int(examples.lengths.max()))
    length = sequence_length(examples, config.data.packing, longest)
    steps = Steps(
        examples, Mix([len(examples)], None, 0, shuffle=False), rows=rows, length=length, packing=config.data.packing
    )
    own = OwnRows(mesh, rows)
    budget = chunk_budget(config.train.loss_chunk_bytes, mesh.size, model.config.vocab_size)
    step = jax.jit(completion_scores(model.graph, model.config, logits_bytes=budget, layout=layout_on(mesh)))
    for number in range(len(steps)):
        sums = step(model.params, own.whole_on_devices(steps[number]))
        losses, counts = fetch(sums.loss), fetch(sums.num)
        for row in range(rows):
            for segment, i in enumerate(steps.row(number * rows + row), 1):
                found[i], tokens[i] = losses[row, segment], counts[row, segment]
    with np.errstate(invalid="ignore"):
        return found / np.where(tokens > 0, tokens, np.nan)
