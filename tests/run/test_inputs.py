"""A model of images is trained, judged, cut off and resumed from files alone, as one of texts is."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxlean import tree
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.adapter import read_adapter
from jaxlean.hub.load import initial, load
from jaxlean.hub.write import write_model
from jaxlean.plan.plan import describe
from jaxlean.run.finetune import finetune
from jaxlean.run.predictions import predict

pytestmark = pytest.mark.usefixtures("small_machine")

ARCHITECTURE = {
    "model_type": "vit", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4, "initializer_range": 0.2, "architectures": ["ViTModel"],
}  # fmt: skip
COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A ViT that knows nothing, and 24 images of three colours."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                noisy = np.clip(np.asarray(colour) + rng.normal(0, 30, (9, 9, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / f"{i}.png")
    write_model(initial(ARCHITECTURE, "float32"), tmp_path / "vit")
    say = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(say))
    (tmp_path / "vit" / "tokenizer.json").write_text("{}")  # as CLIP has one, which nobody reads for images alone
    return {
        "task": "classify",
        "model": {"path": str(tmp_path / "vit"), "dtype": "float32"},
        "data": {
            "train": str(tmp_path / "images"),
            "eval": {"path": str(tmp_path / "images"), "split": "test"},
            "augment": True,
        },
        "train": {
            "learning_rate": 0.01, "max_steps": 20, "per_device_train_batch_size": 6, "logging_steps": 1,
            "save_steps": 5,
        },
        "eval": {"per_device_eval_batch_size": 5},
        "report": {"tensorboard": False},
        "output_dir": str(tmp_path / "run"),
    }  # fmt: skip


@pytest.fixture
def run(values: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    from jaxlean.config import load as load_config

    file = tmp_path / "images.yaml"
    file.write_text(json.dumps(values))
    return lambda *overrides: load_config(file, list(overrides))


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_whole_a_model_learns_and_is_written(run: Callable[..., Any], tmp_path: Path) -> None:
    summary = finetune(run("lora=null"))
    assert summary["eval_before"]["accuracy"] < 0.7
    assert summary["eval_after"]["accuracy"] == 1.0
    assert summary["eval_after"]["examples"] == 12
    model = load(tmp_path / "run" / "model", "float32")
    assert model.hf_config["architectures"] == ["ViTForImageClassification"]
    assert [model.hf_config["id2label"][str(i)] for i in range(3)] == sorted(COLOURS)
    plain = np.stack([np.full((8, 8, 3), np.asarray(COLOURS[name]) / 127.5 - 1) for name in sorted(COLOURS)])
    assert np.argmax(model(plain), axis=-1).tolist() == [0, 1, 2]
    assert (tmp_path / "run" / "model" / "preprocessor_config.json").exists()


def test_cut_off_and_resumed_it_is_the_same_run(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxlean.run import finetune as module

    finetune(run("lora=null", f"output_dir={tmp_path / 'whole'}"))

    class Cut(Exception):
        pass

    batches_of = module.batches_of

    def broken(*args: Any, **how: Any) -> Any:
        found = batches_of(*args, **how)
        after = found.__class__.__next__
        monkeypatch.setattr(found.__class__, "__next__", lambda self: _cut() if self.step == 13 else after(self))
        return found

    def _cut() -> Any:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(module, "batches_of", broken)
        with pytest.raises(Cut):
            finetune(run("lora=null"))
    monkeypatch.undo()
    finetune(run("lora=null"), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == 20


def test_with_an_adapter_the_head_is_saved_beside_it(run: Callable[..., Any], tmp_path: Path) -> None:
    summary = finetune(run("lora.r=4", "train.learning_rate=0.02"))
    assert summary["eval_after"]["accuracy"] > summary["eval_before"]["accuracy"]
    folder = tmp_path / "run" / "adapter"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["classifier"]
    base = load(tmp_path / "vit", "float32", task="classify", labels=sorted(COLOURS))
    leaves = tree.flatten(read_adapter(folder, base.names, base.params))
    assert {"classifier.kernel", "classifier.bias", "layers.mlp.up.lora_a"} <= leaves.keys()


def test_predict_says_that_it_reads_texts(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)model of images.*vit.*jaxlean\.load"):
        predict(run(), tmp_path / "images", tmp_path / "said.jsonl")


def test_what_does_not_fit_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    say = tmp_path / "vit" / "preprocessor_config.json"
    say.write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 12}}))
    with pytest.raises(ModelError, match=r"(?s)\(8, 12\).*\(8, 8, 3\)"):
        finetune(run())
    os.remove(say)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        finetune(run())
    with pytest.raises((ModelError, ConfigError), match="task"):
        finetune(run("task=tag", "data.text_column=image", "data.label_column=label", "data.labels=[a,b]"))


def test_a_plan_knows_how_many_images_there_are(run: Callable[..., Any], golden: Path) -> None:
    work = describe(run())
    assert (work.num_steps, work.rows, work.length, work.tokens) == (20, 6, 5, 24)  # four patches and the class token
    with pytest.raises(ConfigError, match="the layers of a transformer"):
        describe(run(f"model.path={golden / 'mobilenetv2_classify'}"))
