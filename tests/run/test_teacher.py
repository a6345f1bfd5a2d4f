"""The teacher's own program: on devices of its own; what is not its student's, and what cannot be asked of it."""

import json

import numpy as np
import pytest

from jaxlean.config import load as load_config
from jaxlean.errors import ModelError
from jaxlean.hub.load import load_tokenizer
from jaxlean.run.finetune import finetune
from jaxlean.run.teacher import check_same_tokens

pytestmark = pytest.mark.slow


@pytest.fixture
def file(tiny_values, tiny_base, tmp_path):
    """The config of a run whose student is the first layer of `tiny_base`."""
    values = {name: value for name, value in tiny_values.items() if name != "lora"}
    values["model"] = {"dtype": "float32"}
    values["distill"] = {"teacher": str(tiny_base), "student": {"layers": [0]}, "top_k": 8}
    made = tmp_path / "distill.yaml"
    made.write_text(json.dumps(values | {"output_dir": str(tmp_path / "run")}))
    return made


def losses(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found if "loss" in line]


def test_teacher_and_student_have_devices_of_their_own(file, tmp_path):
    few = ["train.max_steps=2", "train.logging_steps=1", "data.eval=null", "train.save_steps=2"]
    finetune(load_config(file, [*few, "train.per_device_train_batch_size=1"]))
    apart = [f"output_dir={tmp_path / 'apart'}", "distill.devices=4", "distill.tensor=2", "mesh.fsdp=2"]
    finetune(load_config(file, [*few, *apart, "train.per_device_train_batch_size=2"]))
    # 8 rows a step either way, once on the same eight devices, once on four and four
    np.testing.assert_allclose(losses(tmp_path / "apart"), losses(tmp_path / "run"), rtol=1e-4)
    # 3 rows on 4 devices of the teacher: it is given a row that carries nothing
    odd = [f"output_dir={tmp_path / 'odd'}", "distill.devices=5", "mesh.data=3"]
    finetune(load_config(file, [*few, *odd, "train.per_device_train_batch_size=1"]))
    assert losses(tmp_path / "odd")[0] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.top_k=2049"], "asked for more tokens than there are"),
        (["distill.teacher=nowhere/at/all"], "no such model folder"),
        (["distill.teacher.adapter=nowhere"], "adapter"),
        (["distill.devices=8"], "leaves the student none"),
        (["distill.student.layers=[0,2]"], "no such layer"),
        (["distill.alpha=1.5"], "distill.alpha"),
        (["task=classify", "data.text_column=prompt", "data.label_column=completion"], "is no encoder"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(file, cli, overrides, message, tmp_path):
    code, _, err = cli("distill", file, *overrides)
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_config_without_a_teacher_does_not_distil(cli, tiny_yaml):
    code, _, err = cli("distill", tiny_yaml)
    assert code == 2
    assert "distill.teacher is not set" in err


def test_another_tokenizer_is_refused(tiny_base, tmp_path):
    from tokenizers import Tokenizer

    ours = load_tokenizer(str(tiny_base))
    check_same_tokens(ours, ours)

    def changed(change):
        folder = tmp_path / "other"
        ours.save_pretrained(folder)
        said = json.loads((folder / "tokenizer.json").read_text())
        change(said)
        (folder / "tokenizer.json").write_text(json.dumps(said))
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        return load_tokenizer(str(folder))

    def swap(said):
        vocab = said["model"]["vocab"]
        one, two = [token for token in vocab if len(token) == 1][:2]
        vocab[one], vocab[two] = vocab[two], vocab[one]

    with pytest.raises(ModelError, match=r"other tokens than the student(?s:.)*2,048 and 2,048 tokens; '"):
        check_same_tokens(changed(swap), ours)
    with pytest.raises(ModelError, match=r"cuts texts into other tokens"):
        check_same_tokens(changed(lambda said: said["model"].update(merges=said["model"]["merges"][:100])), ours)
