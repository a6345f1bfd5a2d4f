"""Programs that are compiled apart and timed in turns."""

import jax
import numpy as np
import pytest

from jaxlean.receipt import programs as module
from jaxlean.receipt.programs import Program, calibrate, compile_programs, rows_of_run

pytestmark = pytest.mark.usefixtures("small_machine")


def test_a_step_is_the_median_of_its_calibrations():
    assert Program().seconds is None
    assert Program(step_seconds=[3.0, 1.0, 2.0]).seconds == 2.0


def test_programs_take_turns(monkeypatch):
    turns = []
    monkeypatch.setattr(module, "_run", lambda found, compiled, batches: turns.append(found) or [1.0])
    said = {"a": Program(), "b": Program()}
    calibrate(said, {"a": ("a", None), "b": ("b", None)}, [], rounds=3)
    assert turns == ["a", "b"] * 3
    assert said["a"].step_seconds == [1.0] * 3


def test_rows_are_laid_out_as_a_program_takes_them():
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        "tokens": jax.ShapeDtypeStruct((2, 2, 3), np.int32, sharding=where),
        "teacher": jax.ShapeDtypeStruct((2, 2, 3, 4), np.float32, sharding=where),
    }
    batches = [{"tokens": np.arange(12, dtype=np.int64).reshape(4, 3) + i} for i in range(2)]
    found = module._like(batches, shapes)
    first, second, third = next(found), next(found), next(found)
    assert first["tokens"].dtype == np.int32
    np.testing.assert_array_equal(first["tokens"][1, 0], [6, 7, 8])
    assert second["tokens"][0, 0, 0] == 1
    np.testing.assert_array_equal(third["tokens"], first["tokens"])
    assert not first["teacher"].any()


def test_the_rows_of_a_run_and_how_many_steps_they_make(tiny_run):
    config = tiny_run("train.max_steps=null", "train.num_train_epochs=2", "data.packing=false")
    batches, length, steps = rows_of_run(config, num=3)
    assert (len(batches), length) == (3, 64)
    assert batches[0]["tokens"].shape == (2, 64)
    assert steps == 24
    assert rows_of_run(config, num=0)[0] == []


@pytest.mark.slow
def test_what_cannot_be_is_told_and_the_others_are_compiled(tiny_run):
    config = tiny_run("train.remat=full")
    wrong = tiny_run("lora.r=100")
    said, made = compile_programs(
        {"run": config, "wrong": wrong}, {"run": "full", "wrong": "none"}, length=64, capacity=None
    )
    assert "lora.r exceeds the matrix" in said["wrong"].refused
    assert made.keys() == {"run"}
    assert said["run"].fits
    assert said["run"].memory_bytes > 0
    assert said["run"].flops > 0
    assert said["run"].compile_seconds > 0
