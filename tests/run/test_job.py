"""The step over shapes is the one that `finetune` compiles: the same arguments in the same places, the same program."""

import json
import re

import jax
import pytest

from jaxlean.config import MeshSection
from jaxlean.errors import ConfigError
from jaxlean.run import finetune as run
from jaxlean.run import job
from jaxlean.run.finetune import finetune
from jaxlean.run.job import Outline, outline, rows_of_step
from jaxlean.xla.mesh import make_mesh


class Seen(Exception):
    """What was to be compiled is known; nobody waits for it."""


def compiled_by_finetune(config, monkeypatch):
    """(the jitted step, its arguments) of a run that ends there."""
    seen = []

    def stop(step, *arguments):
        seen.extend([step, arguments])
        raise Seen

    monkeypatch.setattr(run, "compile_step", stop)
    with pytest.raises(Seen):
        finetune(config)
    return seen


def described(tree):
    """{path: (shape, dtype, where each device's part lies)}."""

    def of(leaf):
        places = leaf.sharding.devices_indices_map(leaf.shape)
        return leaf.shape, str(leaf.dtype), {device.id: str(place) for device, place in places.items()}

    return {jax.tree_util.keystr(path): of(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def text_of(step, arguments):
    """The traced program; addresses of Python objects in it are no part of it."""
    return re.sub(r"0x[0-9a-f]+", "", str(step.trace(*arguments).jaxpr))


WAYS = {
    "lora": [],
    "lora over tensor and fsdp": ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "model.dtype=bfloat16"],
    "full": ["lora=null", "mesh.fsdp=4", "train.gradient_accumulation_steps=2"],
    "int8": ["model.quantization=int8", "mesh.data=4", "mesh.tensor=2", "train.remat=[query,gate]"],
    "8-bit moments": ["lora=null", "train.optim=adamw_8bit", "train.trainable=[layers]", "train.remat=full"],
    "pissa of nf4": ["lora.init_lora_weights=pissa", "model.quantization=nf4", "lora.lora_dropout=0.1"],
}


@pytest.mark.parametrize("way", WAYS)
def test_its_arguments_and_its_program_are_those_of_a_run(tiny_run, monkeypatch, way):
    config = tiny_run("data.eval=null", *WAYS[way])
    step, arguments = compiled_by_finetune(config, monkeypatch)
    mesh = make_mesh(config.mesh)
    made = outline(config, mesh, length=64, num_steps=6)
    assert made.rows == rows_of_step(config, mesh)
    for ours, theirs in zip(made.arguments, arguments, strict=True):
        assert described(ours) == described(theirs)
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert text_of(made.build(config.train.remat), made.arguments) == text_of(step, arguments)


def test_it_needs_no_weights(tiny_run, tiny_base, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text((tiny_base / "config.json").read_text())
    made = outline(tiny_run(f"model.path={tmp_path / 'base'}"), make_mesh(MeshSection()), length=32)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(made.arguments))
    assert made.batch["tokens"].shape == (1, 16, 32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.path=null"], "model.path is not set"),
        (["lora.target_modules=[q_prj]"], "did you mean 'q_proj'"),
        (["lora=null", "train.trainable=[nothing]"], "a rule matched no parameter"),
    ],
)
def test_what_finetune_refuses_it_refuses(tiny_run, settings, words):
    config = tiny_run(*settings)
    with pytest.raises(ConfigError) as caught:
        outline(config, make_mesh(config.mesh), length=64)
    assert words in str(caught.value)


def test_from_zero(tiny_run, tiny_base):
    architecture = json.loads((tiny_base / "config.json").read_text())
    config = tiny_run("model.path=null", "lora=null", f"model.tokenizer={tiny_base}", "mesh.fsdp=2")
    config.model.architecture = {key: architecture[key] for key in ("model_type", "vocab_size", "hidden_size",
        "intermediate_size", "num_hidden_layers", "num_attention_heads")}  # fmt: skip
    made: Outline = outline(config, make_mesh(config.mesh), length=16)
    assert jax.tree.leaves(made.frozen) == []
    config.lora = tiny_run().lora
    with pytest.raises(ConfigError, match="starts from zero"):
        job.base(config, make_mesh(config.mesh), shapes=True)


@pytest.mark.parametrize(
    ("how", "copies"),
    [
        (["mesh.data=8"], 8.0),
        (["lora=null", "mesh.data=8"], 8.0),
        (["mesh.fsdp=8", "mesh.data=1"], 8.0),  # adapters are whole everywhere
        (["train.sync=diloco", "train.diloco.every=2", "mesh.data=8"], 1.0),  # a replica's own are no copies
    ],
)
def test_devices_that_update_the_same_number(tiny_run, how, copies):
    config = tiny_run(*how)
    mesh = make_mesh(config.mesh)
    assert job.copies(outline(config, mesh, length=64).state, mesh) == copies


def test_of_a_model_split_by_fsdp_nearly_each_number_is_updated_once(tiny_run):
    config = tiny_run("lora=null", "mesh.fsdp=4", "mesh.data=2")
    mesh = make_mesh(config.mesh)
    assert 2.0 < job.copies(outline(config, mesh, length=64).state, mesh) < 2.1, "two copies; norms on all eight"
