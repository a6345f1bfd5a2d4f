"""`jaxlean quantize` from the command line: what it writes, says and refuses."""

import json

import jax
import numpy as np
import pytest

from jaxlean import load
from jaxlean.adapt import lora
from jaxlean.compress.quantize import How, Scheme, quantize
from jaxlean.config import LoraSection
from jaxlean.errors import ModelError
from jaxlean.hub.adapter import write_adapter
from jaxlean.run import quantize as run

SMALL = ("calibration.num_rows=2", "calibration.max_length=64", "quantize.scheme=w4a16", "quantize.group_size=32")


@pytest.fixture
def adapter(tiny_base, tmp_path):
    """An adapter that turns the model."""
    model = load(tiny_base, "float32")
    settings = LoraSection(r=2, target_modules=["q_proj"])
    params = lora.add(model.params, ["layers.attention.query"], settings, jax.random.key(0))
    query = params["layers"]["attention"]["query"]
    query["lora_b"] = query["lora_b"] + 0.5
    folder = tmp_path / "adapter"
    kept = {"layers": {"attention": {"query": {k: v for k, v in query.items() if k.startswith("lora_")}}}}
    write_adapter(folder, model.names, kept, settings, base=str(tiny_base))
    return folder


@pytest.mark.slow
def test_it_writes_what_it_measured(cli, tiny_yaml, tiny_base, adapter, tmp_path):
    output = tmp_path / "small"
    code, out, err = cli("quantize", tiny_yaml, *SMALL, "--output", output, "--adapter", adapter)
    assert (code, err) == (0, "")
    report = json.loads((output / "quantization.json").read_text())
    assert report["scheme"] == "w4a16"
    assert report["group_size"] == 32
    assert report["calibration_rows"] == 2
    assert 100 < report["calibration_tokens"] <= 128
    assert len(report["linear_layers"]) == 14
    assert report["bytes"] == (output / "model.safetensors").stat().st_size
    # what was measured is what is there
    code, evaluated, _ = cli("evaluate", tiny_yaml, f"model.path={output}")
    assert code == 0
    assert f"{report['eval_after']['loss']:.4f}" in evaluated
    for words in (
        f"loss {report['eval_before']['loss']:.4f}",
        f"loss {report['eval_after']['loss']:.4f}",
        "smaller",
        "linear layer's outputs",
    ):
        assert words in out
    heads = [[cell.strip() for cell in line.split("┃")] for line in out.splitlines() if line.startswith("┃")]
    assert ("mlp", "down") in zip(*heads, strict=True)  # each linear layer has a column
    code, plain, _ = cli("evaluate", tiny_yaml, "--adapter", adapter)
    assert f"{report['eval_before']['loss']:.4f}" in plain  # of base and adapter together
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("small")] == ["small"]
    code, _, _ = cli("generate", output, "-p", "red house", "--max-new-tokens", "2")
    assert code == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("quantize.group_size=48",), "a group size that does not divide"),
        (("quantize.scheme=w8a8",), "w8a8 has one scale a column"),
        (("calibration.num_rows=500",), "too few calibration rows"),
        (("data.train=null",), "data.train is not set"),
        (("quantize.ignore=[dwon]",), "finds no linear layer"),
        (("quantize.bits=4",), "quantize.bits"),
        (("model.quantization=int8",), "starts from the wide model"),
        (("quantize.smoothquant_alpha=0.5",), "there is nothing to smooth"),
        (("model.chat_template=nowhere.jinja", "quantize.method=rtn"), "the chat template cannot be read"),
        (("quantize.ignore=['(']",), "not a regular expression"),
    ],
)
def test_what_is_refused_leaves_no_folder(cli, tiny_yaml, tmp_path, overrides, words):
    code, _, err = cli("quantize", tiny_yaml, *SMALL, *overrides, "--output", tmp_path / "small")
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("small")]


def test_nothing_is_quantized_twice_and_nothing_overwritten(cli, tiny_yaml, tmp_path):
    small = ("quantize.method=rtn", *SMALL)
    assert cli("quantize", tiny_yaml, *small, "--output", tmp_path / "small")[0] == 0
    code, _, err = cli("quantize", tiny_yaml, *small, "--output", tmp_path / "small")
    assert code == 2
    assert "is not empty" in err
    code, _, err = cli(
        "quantize", tiny_yaml, *small, f"model.path={tmp_path / 'small'}", "--output", tmp_path / "again"
    )
    assert code == 2
    assert "quantized already" in err
    assert not (tmp_path / "again").exists()


def test_an_adapter_of_another_base_is_refused(cli, tiny_yaml, adapter, tmp_path):
    file = adapter / "adapter_model.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file({name: np.zeros((*x.shape[:-1], x.shape[-1] + 2), x.dtype) for name, x in load_file(file).items()}, file)
    code, _, err = cli("quantize", tiny_yaml, *SMALL, "--output", tmp_path / "small", "--adapter", adapter)
    assert code == 2
    assert "adapter" in err
    assert not (tmp_path / "small").exists()


def test_what_is_read_back_as_another_is_an_error(tiny_base):
    model = load(tiny_base, "float32")
    other = model.with_params(jax.tree.map(lambda x: 1.1 * x, model.params))
    with pytest.raises(ModelError, match="read back as another"):
        run.compare(other, model, tiny_base)


def test_bytes_before_are_those_of_wide_kernels(tiny_base):
    """Also of a base that was quantized before, whose adapter is folded into its numbers."""
    wide = load(tiny_base, "float32")
    four, _ = quantize(wide, How(Scheme(4, 32, activations=False)))
    assert run._bytes(four, "float32") == run._bytes(wide, "float32")
