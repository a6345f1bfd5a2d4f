"""A model as a program: run by jax alone it gives what the model gives."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlean import load
from jaxlean.errors import ModelError
from jaxlean.run import stablehlo
from jaxlean.run.generate import stop_ids
from jaxlean.run.stablehlo import write_stablehlo


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_script_completes_with_jax_alone(tiny_base, tmp_path, dtype):
    model = load(tiny_base, dtype)
    write_stablehlo(model, tmp_path, length=24)
    script = tmp_path / "run.py"
    assert len([line for line in script.read_text().splitlines() if line.strip()]) <= 20
    # -I: nothing of ours is on the path
    command = [sys.executable, "-I", script, "12", "45", "7"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    tokens = [int(number) for number in found.stdout.split()]
    assert len(tokens) == 24 or tokens[-1] in stop_ids(model)
    assert tokens[:3] == [12, 45, 7]
    for words in (["99999"], ["hello"], [], [str(number) for number in range(24)]):
        refused = subprocess.run([*command[:3], *words], capture_output=True, text=True, timeout=300)
        assert (refused.returncode, "wanted: 1 to 23 token ids below 2048" in refused.stderr) == (1, True)
    if dtype == "float32":
        logits = np.asarray(model(np.asarray([tokens[:-1]])))[0]
        np.testing.assert_array_equal(logits[2:].argmax(-1), tokens[3:])


@pytest.mark.slow
def test_an_encoder_takes_segments_and_any_number_of_rows(encoder, tmp_path):
    model = load(encoder, "float32")
    write_stablehlo(model, tmp_path, length=12)
    assert not (tmp_path / "run.py").exists()
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    with np.load(tmp_path / "params.npz") as file:
        numbers = dict(file)
    tokens = np.random.default_rng(0).integers(5, 2000, (5, 12), np.int32)
    segments = np.repeat([[1] * 7 + [0] * 5], 5, axis=0).astype(np.int32)
    got = np.asarray(program.call(numbers, tokens, segments))[:, :7]
    want = np.asarray(model(tokens[:, :7], segments=segments[:, :7]))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_program_that_gives_something_else_is_refused(tiny_base, tmp_path, monkeypatch):
    model = load(tiny_base, "float32")
    monkeypatch.setattr(stablehlo, "_as_numpy", lambda leaf: np.asarray(1.01 * leaf))
    with pytest.raises(ModelError, match="does not give what the model gives"):
        write_stablehlo(model, tmp_path, length=8)
