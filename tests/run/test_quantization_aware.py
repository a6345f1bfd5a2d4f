"""Adapters that are rounded with their base in training: what is exported is what was trained."""

import json

import numpy as np
import pytest

from jaxlean import codec, load, tree

pytestmark = pytest.mark.slow

GROUP = "quantize.group_size=32"


@pytest.fixture(scope="module")
def bases(small_machine, tiny_base, tmp_path_factory):
    """The base quantized to each scheme."""
    from jaxlean.compress.quantize import SCHEMES, How, Scheme, quantize
    from jaxlean.hub.write import write_model

    folder = tmp_path_factory.mktemp("aware")
    for name, scheme in {"w4a16": Scheme(4, 32, activations=False), "w8a8": SCHEMES["w8a8"]}.items():
        write_model(quantize(load(tiny_base, "float32"), How(scheme))[0], folder / name)
    return folder


@pytest.mark.parametrize("scheme", ["w4a16", pytest.param("w8a8", marks=pytest.mark.slow)])
def test_merging_changes_nothing(cli, tiny_yaml, bases, tmp_path, scheme):
    run = tmp_path / "run"
    how = (f"model.path={bases / scheme}", "lora.quantization_aware=true", "train.learning_rate=0.03")
    code, _, err = cli("finetune", tiny_yaml, *how)
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    before, after = summary["eval_before"]["loss"], summary["eval_after"]["loss"]
    assert after < before - 0.05
    code, out, err = cli("export", run, tmp_path / "out", GROUP if scheme == "w4a16" else "seed=0", "--format", scheme)
    assert code == 0, err
    assert "the adapter was trained rounded" in out
    report = json.loads((tmp_path / "out" / "quantization.json").read_text())
    # another program over the same numbers: of W8A8 the last bit of a sum may round an input to another number
    near = 1e-5 if scheme == "w4a16" else 2e-3
    assert report["eval_after"]["loss"] == pytest.approx(after, rel=near)
    assert report["group_size"] == (32 if scheme == "w4a16" else None)
    # the adapter moved whole numbers, and the scales are the base's
    base, merged = (tree.flatten(load(folder, "float32").params) for folder in (bases / scheme, tmp_path / "out"))
    changed = [path for path in base if not np.array_equal(base[path], merged[path])]
    assert changed
    assert {path.rpartition(".")[2] for path in changed} == {"kernel_int4" if scheme == "w4a16" else "kernel_int8"}
    # merged by itself it is the same: the adapter's file says that it was trained so
    code, _, err = cli("merge", run / "adapter", tmp_path / "merged")
    assert code == 0, err
    assert all(
        np.array_equal(merged[path], x) for path, x in tree.flatten(load(tmp_path / "merged", "float32").params).items()
    )
    if scheme == "w4a16":
        code, _, err = cli("export", run, tmp_path / "other", "quantize.group_size=16", "--format", scheme)
        assert code == 2
        assert "w4a16 in groups of 32" in err
    # evaluated as the adapter that it is, it is the same
    code, out, _ = cli("evaluate", tiny_yaml, *how, "--adapter", run / "adapter")
    assert code == 0
    assert f"{after:.4f}" in out


@pytest.mark.slow
def test_a_plain_adapter_over_a_quantized_base_is_merged_wide(cli, tiny_yaml, bases, tmp_path):
    run = tmp_path / "run"
    assert cli("finetune", tiny_yaml, f"model.path={bases / 'w4a16'}")[0] == 0
    summary = json.loads((run / "summary.json").read_text())
    code, _, err = cli("merge", run / "adapter", tmp_path / "merged")
    assert code == 0, err
    assert not codec.is_quantized(tree.flatten(load(tmp_path / "merged", "float32").params))
    code, out, _ = cli("evaluate", tiny_yaml, f"model.path={tmp_path / 'merged'}")
    assert code == 0
    loss = float(out.split("loss ")[-1].split()[0])
    assert loss == pytest.approx(summary["eval_after"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("lora.quantization_aware=true",), "the base is not held in whole numbers"),
        (("lora.quantization_aware=true", "lora.lora_dropout=0.1"), "without lora.lora_dropout"),
        (("lora.quantization_aware=true", "lora.use_dora=true"), "without lora.use_dora"),
        (("lora.quantization_aware=true", "lora.init_lora_weights=pissa"), "without lora.init_lora_weights=pissa"),
        (("lora.quantization_aware=true", "model.matmul=int8"), "leave out model.matmul"),
    ],
)
def test_what_is_refused(cli, tiny_yaml, overrides, words):
    code, _, err = cli("finetune", tiny_yaml, *overrides)
    assert code == 2
    assert words in err
