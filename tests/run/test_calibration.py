"""Calibration rows are the first sequences of the training data."""

import numpy as np
import pytest

from jaxlean import load
from jaxlean.data.loader import train_batches
from jaxlean.errors import DataError
from jaxlean.run.calibration import calibration


def test_the_first_sequences(tiny_run, tiny_base):
    config, model = tiny_run("eval.per_device_eval_batch_size=2"), load(tiny_base, "float32")
    found = calibration(config, model, model.tokenizer, num_rows=3, key="prune.num_rows")
    want = next(train_batches(config, model.tokenizer, rows_per_step=3, vocab_size=2048))
    assert [set(batch) for batch in found] == [{"tokens", "segments", "positions"}] * 2
    for name in ("tokens", "segments", "positions"):
        got = np.concatenate([batch[name] for batch in found])
        np.testing.assert_array_equal(got[:3], want[name])
        assert got.shape == (4, 64)
    assert not found[1]["segments"][1].any()


def test_too_few(tiny_run, tiny_base):
    model = load(tiny_base, "float32")
    with pytest.raises(DataError, match=r"too few calibration rows[\s\S]*99 \(prune.num_rows\)"):
        calibration(tiny_run(), model, model.tokenizer, num_rows=99, key="prune.num_rows")
