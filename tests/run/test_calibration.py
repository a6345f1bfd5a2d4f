"""Calibration rows: of the training data, packed, as many as asked for or none."""

import numpy as np
import pytest

from jaxlean import load
from jaxlean.errors import ConfigError, DataError
from jaxlean.run.calibration import calibration_batches


def test_rows_are_packed_and_of_one_shape(tiny_run, tiny_base):
    config = tiny_run("calibration.num_rows=3", "calibration.max_length=64", "calibration.batch_size=2")
    batches = calibration_batches(config, load(tiny_base).tokenizer, vocab_size=2048)
    assert [batch["tokens"].shape for batch in batches] == [(2, 64), (2, 64)]
    assert not batches[1]["segments"][1].any()  # three rows, no more
    for batch in batches:
        batch = {name: x[: 2 - (batch is batches[1])] for name, x in batch.items()}
        assert set(batch) == {"tokens", "segments", "positions"}
        assert (batch["segments"].max(axis=1) > 1).all()  # several texts a row
        assert (batch["positions"] < 64).all()
        assert ((batch["segments"] > 0).mean(axis=1) > 0.6).all()
    again = calibration_batches(config, load(tiny_base).tokenizer, vocab_size=2048)
    np.testing.assert_array_equal(again[1]["tokens"], batches[1]["tokens"])


def test_rows_that_training_took_may_be_longer(tiny_run, tiny_base):
    """`data.on_long: error` is about `data.max_length`; a prompt alone may be as long as a calibration row."""
    config = tiny_run("calibration.num_rows=4", "calibration.max_length=8", "calibration.batch_size=2")
    batches = calibration_batches(config, load(tiny_base).tokenizer, vocab_size=2048)
    assert [batch["tokens"].shape for batch in batches] == [(2, 8), (2, 8)]
    assert all((batch["segments"] > 0).all() for batch in batches)


def test_too_few_rows_are_refused(tiny_run, tiny_base):
    with pytest.raises(DataError, match="too few calibration rows") as caught:
        calibration_batches(tiny_run(), load(tiny_base).tokenizer, vocab_size=2048)
    assert "128, as calibration.num_rows says" in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        calibration_batches(tiny_run("data.train=null"), load(tiny_base).tokenizer, vocab_size=2048)
