"""`jaxlean prune` from its command line: what it writes, what it says, what it refuses without a trace."""

import json

import numpy as np
import pytest

from jaxlean import load, tree
from jaxlean.config import load as read
from jaxlean.run.evaluate import evaluate
from jaxlean.run.finetune import finetune

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_machine")]

FEW = ("calibration.num_rows=4", "calibration.batch_size=2", "calibration.max_length=64")


def zeros(folder):
    kernels = {path: x for path, x in tree.flatten(load(folder, "float32").params).items() if path.endswith(".kernel")}
    return {path: float((np.asarray(x) == 0).mean()) for path, x in kernels.items()}


def test_a_model_with_zeros(cli, tiny_yaml, tmp_path):
    out = tmp_path / "pruned"
    rules = 'prune.ignore=["layers.0.attention.value"]'
    code, said, err = cli("prune", tiny_yaml, *FEW, "prune.method=sparsegpt", "prune.pattern=2:4", rules, "-o", out)
    assert (code, err) == (0, "")
    told = json.loads((out / "pruning.json").read_text())
    assert told["method"] == "sparsegpt"
    assert told["settings"]["pattern"] == "2:4"
    assert len(told["layers"]) == 13
    assert told["num_params"] == told["num_params_before"]
    share = {"layers.attention.value.kernel": 0.25}
    assert zeros(out) == {path: pytest.approx(share.get(path, 0.5)) for path in zeros(out)}
    assert f"{told['zeros']:.1%}" in said
    # what it says of the quality is what is measured of the folder
    found = evaluate(read(tiny_yaml, [f"model.path={out}"]))
    assert found["loss"] == pytest.approx(told["eval_after"]["loss"], abs=1e-5)
    assert f"-> {found['loss']:,.4f}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned", "tiny.yaml"]

    # and it can be trained further: every zero stays, all else moves
    run = tmp_path / "healed"
    healed = [f"model.path={out}", f"output_dir={run}", "lora=null", "train.keep_zeros=true"]
    finetune(read(tiny_yaml, [*healed, "train.max_steps=3", "eval.before=false"]))
    before, after = (tree.flatten(load(folder, "float32").params) for folder in (out, run / "model"))
    for path, leaf in before.items():
        if path.endswith(".kernel"):
            np.testing.assert_array_equal(np.asarray(after[path]) == 0, np.asarray(leaf) == 0)
            assert not np.array_equal(after[path], leaf)


def test_a_smaller_model(cli, tiny_yaml, tiny_base, tmp_path):
    out, picture = tmp_path / "small", tmp_path / "picture.svg"
    code, said, err = cli(
        "prune", tiny_yaml, *FEW, "prune.method=structured", "prune.num_hidden_layers=1", "prune.intermediate_size=48",
        "prune.num_key_value_heads=1", "-o", out, "--sensitivity", picture,
    )  # fmt: skip
    assert (code, err) == (0, "")
    told, config = json.loads((out / "pruning.json").read_text()), json.loads((out / "config.json").read_text())
    wanted = {"num_hidden_layers": 1, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert {key: config[key] for key in wanted} == wanted
    assert config["head_dim"] == 8
    assert len(told["influence"]) == 2
    assert len(told["kept_layers"]) == 1
    assert "influence" in said
    assert "<svg" in picture.read_text()
    found = evaluate(read(tiny_yaml, [f"model.path={out}"]))
    assert found["loss"] == pytest.approx(told["eval_after"]["loss"], abs=1e-5)
    run = tmp_path / "healed"  # with adapters, as any model
    summary = finetune(read(tiny_yaml, [f"model.path={out}", f"output_dir={run}", "train.max_steps=2"]))
    assert summary["status"] == "completed"
    assert (run / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("calibration.num_rows=99",), "too few calibration rows"),
        (
            ("prune.method=sparsegpt", "calibration.num_rows=1", "calibration.max_length=32"),
            "too few calibration tokens",
        ),
        (("prune.pattern=3:5",), "m does not divide"),
        (("prune.method=neurons",), "is not told how much goes"),
        (("prune.method=neurons", "prune.intermediate_size=65"), "that no pruning gives"),
        (("prune.method=neurons", "prune.params=0.1"), "so few are left only if more goes"),
        (("prune.method=layers", "prune.num_hidden_layers=3"), "there are fewer"),
        (("prune.method=layers", "prune.keep_layers=[1, 7]"), "numbers of layers, ascending"),
        (("prune.ignore=[nothing]",), "matched no parameter"),
        (("model.quantization=int8",), "a quantized model is not pruned"),
        (("data.train=null",), "nothing to calibrate on"),
        (("model.path=null",), "model.path is not set"),
        (("--sensitivity", "/no/such/folder.png"), "in a folder that is not there"),
        (("--adapter", "/no/such"), "no such adapter folder"),
    ],
)
def test_what_is_refused_leaves_nothing(cli, tiny_yaml, tmp_path, arguments, words):
    out = tmp_path / "out"
    code, _, err = cli("prune", tiny_yaml, *FEW, *arguments, "-o", out)
    assert code == 2
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_a_folder_that_holds_something(cli, tiny_yaml, tmp_path):
    code, _, err = cli("prune", tiny_yaml, "-o", tmp_path)
    assert code == 2
    assert "the output folder is not empty" in err
    code, _, err = cli("prune", tiny_yaml)
    assert code == 2
    assert "nothing to write" in err
