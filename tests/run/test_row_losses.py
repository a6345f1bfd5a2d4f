"""The loss of each row against logits in float64, one row at a time; packed or not, on one device and on a mesh."""

import json

import jax
import numpy as np
import pytest

from jaxlean.config import MeshSection
from jaxlean.data.tokenize import Ragged, Tokens
from jaxlean.hub.load import Model, load
from jaxlean.run.row_losses import row_losses
from jaxlean.xla.mesh import make_mesh


def examples_of(model: Model, rows: list[dict]) -> Ragged:
    found = []
    for row in rows:
        prompt = model.tokenizer(row["prompt"])["input_ids"]
        ids = [*prompt, *model.tokenizer(row["completion"])["input_ids"]]
        found.append(Tokens(np.array(ids, np.int32), np.arange(len(ids)) >= len(prompt)))
    return Ragged.of(found)


def by_hand(model: Model, examples: Ragged) -> list[float]:
    found = []
    for i in range(len(examples)):
        tokens, mask = examples[i]
        ids = np.zeros((1, 64), np.int32)
        ids[0, : len(tokens)] = tokens
        logits = np.asarray(model(ids)[0], np.float64)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        found.append(float(np.mean([-logits[t - 1, tokens[t]] for t in range(1, len(tokens)) if mask[t]])))
    return found


@pytest.fixture(scope="module")
def rows(tiny_rows) -> list[dict]:
    return [json.loads(line) for line in tiny_rows.read_text().splitlines()]


@pytest.mark.parametrize(
    "how", [("data.packing=true",), ("data.packing=false",), ("train.loss_chunk_bytes=100000",),
            ("train.loss_chunk_bytes=null", "train.per_device_train_batch_size=5")],
)  # fmt: skip
def test_the_loss_of_each_row_is_what_numpy_computes(tiny_run, tiny_base, rows, how):
    config = tiny_run(*how)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model = load(tiny_base, "float32", mesh)
    examples = examples_of(model, rows)
    found = row_losses(config, model, examples, mesh)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_hand(model, examples), rtol=1e-5)
    assert found.std() > 0.1, "rows differ, so that a wrong order would show"


def test_a_row_with_nothing_to_learn_has_no_loss(tiny_run, tiny_base):
    mesh = make_mesh(MeshSection(data=1), jax.devices()[:1])
    model = load(tiny_base, "float32", mesh)
    ids = np.arange(5, dtype=np.int32) + 300
    first_only = Ragged.of([Tokens(ids, np.arange(5) == 0), Tokens(ids, np.ones(5, bool))])
    found = row_losses(tiny_run(), model, first_only, mesh)
    assert np.isnan(found).tolist() == [True, False]
    assert row_losses(tiny_run(), model, Ragged.of([]), mesh).shape == (0,)


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"context": 2, "data": 2, "tensor": 2}])
def test_on_a_mesh_as_on_one_device(tiny_run, tiny_base, rows, axes):
    devices = jax.devices()
    one, many = make_mesh(MeshSection(data=1), devices[:1]), make_mesh(MeshSection(**{"data": 1} | axes), devices)
    model = load(tiny_base, "float32", one)
    examples = examples_of(model, rows)
    want = row_losses(tiny_run(), model, examples, one)
    np.testing.assert_allclose(
        row_losses(tiny_run(), load(tiny_base, "float32", many), examples, many), want, rtol=1e-5
    )
