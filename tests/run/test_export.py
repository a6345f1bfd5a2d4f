"""`jaxlean export`: every form of one run, read back; what has no result, another base, or no such form is refused."""

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jaxlean import load
from jaxlean.run.merge import load_adapted

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(4).integers(0, 2048, (2, 24))
SMALL = ("calibration.num_rows=2", "calibration.max_length=64")


@pytest.fixture(scope="module")
def run(small_machine, tiny_values, tmp_path_factory):
    """A finished run with an adapter."""
    from jaxlean.config import build
    from jaxlean.run.finetune import finetune

    folder = tmp_path_factory.mktemp("export") / "run"
    finetune(build(tiny_values | {"output_dir": str(folder)}))
    return folder


@pytest.fixture(scope="module")
def trained(run, tiny_base):
    return load_adapted(load(tiny_base, "float32"), run / "adapter")


def test_peft_is_the_adapter_with_a_card(cli, run, tiny_base, tmp_path):
    assert cli("export", run, tmp_path / "out", "--format", "peft")[0] == 0
    files = [load_file(folder / "adapter_model.safetensors") for folder in (run / "adapter", tmp_path / "out")]
    assert files[0].keys() == files[1].keys()
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head == {"library_name": "peft", "tags": ["jaxlean", "peft"], "base_model": str(tiny_base)}
    summary = json.loads((run / "summary.json").read_text())
    for words in (
        "LoRA of rank 4",
        "rows.jsonl",
        f"{summary['eval_after']['loss']:.4f}",
        "6 steps",
        "| held-out | base | trained |",
    ):
        assert words in text
    assert (tmp_path / "out" / "run_config.yaml").exists()


def test_hf_is_the_merged_model(cli, run, trained, tmp_path):
    assert cli("export", run, tmp_path / "out")[0] == 0
    np.testing.assert_allclose(load(tmp_path / "out", "float32")(TOKENS), trained(TOKENS), rtol=1e-3, atol=1e-3)


def test_fewer_bits_are_calibrated_on_the_runs_own_data(cli, run, trained, tmp_path):
    code, out, _ = cli("export", run, tmp_path / "out", *SMALL, "--format", "w8a16")
    assert code == 0
    assert "w8a16 by gptq" in out
    report = json.loads((tmp_path / "out" / "quantization.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert report["eval_before"]["loss"] == pytest.approx(summary["eval_after"]["loss"], rel=1e-4)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "quantized to w8a16 by gptq" in text
    assert yaml.safe_load((tmp_path / "out" / "run_config.yaml").read_text())["quantize"]["scheme"] == "w8a16"
    assert "| held-out | base | trained | before export | exported |" in text
    got, want = load(tmp_path / "out", "float32")(TOKENS), trained(TOKENS)
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "gguf"), "--format is unknown"),
        (("--format", "w4a16", "calibration.num_rows=500", "quantize.group_size=32"), "too few calibration rows"),
        (("--format", "w4a16"), "a group size that does not divide"),
        (("--format", "hf", "quantize.method=awq"), "--format hf is not quantized"),
        (("--format", "w8a8", "quantize.scheme=w4a16"), "--format w8a8 says the scheme"),
        (("--format", "hf", "--length", "64"), "--length is for --format stablehlo"),
        (("--format", "stablehlo", "--length", "99999"), "no length that the model takes"),
    ],
)
def test_what_is_refused_leaves_no_folder(cli, run, tmp_path, arguments, words):
    overrides = [word for word in arguments if "=" in word]
    code, _, err = cli("export", run, tmp_path / "out", *overrides, *(word for word in arguments if "=" not in word))
    assert code == 2
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_result_and_one_of_another_base(cli, run, tmp_path):
    code, _, err = cli("export", tmp_path, tmp_path / "out")
    assert (code, "no run lies there" in err) == (2, True)
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.yaml").write_text((run / "config.yaml").read_text())
    code, _, err = cli("export", half, tmp_path / "out")
    assert (code, "the run has no result yet" in err) == (2, True)
    for word in ("hf", "peft", "w8a8"):
        code, _, err = cli("export", run, tmp_path / "out", "model.path=somebody/else", "--format", word)
        assert code == 2
        assert "the adapter was trained on another base" in err
        assert "model.path=" in err
    assert not (tmp_path / "out").exists()
