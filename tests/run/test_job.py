"""The step over shapes is the one that `finetune` compiles: the same arguments in the same places, the same program."""

import json
import re

import jax
import pytest

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection, MeshSection, build
from jaxlean.errors import ConfigError
from jaxlean.hub.adapter import write_adapter
from jaxlean.hub.load import load
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


@pytest.fixture(scope="module")
def dora(tiny_base, tmp_path_factory):
    """An adapter of rank 3 with magnitudes, on disk, that leaves some layers and modules alone."""
    model, folder = load(tiny_base, "float32"), tmp_path_factory.mktemp("dora") / "adapter"
    settings = LoraSection(r=3, lora_alpha=6, use_dora=True)
    adapted = lora.add(model.params, ["layers.mlp.up", "layers.attention.query"], settings, jax.random.key(0))
    leaves = {path: leaf for path, leaf in tree.flatten(adapted).items() if ".lora_" in path}
    write_adapter(folder, model.names, tree.unflatten(leaves), settings, base=str(tiny_base))
    return folder


@pytest.mark.parametrize("way", [*WAYS, "from an adapter"])
def test_its_arguments_and_its_program_are_those_of_a_run(tiny_run, tiny_yaml, dora, monkeypatch, way):
    if way == "from an adapter":
        values = json.loads(tiny_yaml.read_text()) | {"lora": {"init_from": str(dora)}}
        tiny_yaml.write_text(json.dumps(values))
    config = tiny_run("data.eval=null", *WAYS.get(way, []))
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


TASKS = {
    "classify": [{"text": f"{c} house {n}", "label": c} for c in ("red", "green") for n in range(16)],
    "classify pairs": [{"text": f"{c} house", "text_pair": c, "label": c} for c in ("red", "green") for n in range(16)],
    "tag": [{"tokens": [c, "house"], "tags": [c, "O"]} for c in ("red", "green") for n in range(16)],
    "embed": [{"anchor": f"house {n}", "positive": f"the house {n}"} for n in range(16)],
}


@pytest.mark.parametrize("way", [["mesh.fsdp=2", "mesh.tensor=2"], ["lora=null", "mesh.fsdp=4"]], ids=["lora", "full"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_on_a_mesh_is_what_is_planned(task, way, tiny_run, tmp_path, monkeypatch, stand_in):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TASKS[task]))
    own = [f"task={task.split()[0]}", f"data.train={file}", "data.eval=null", "train.remat=full"]
    config = tiny_run(*own, *way)
    step, arguments = compiled_by_finetune(config, monkeypatch)
    mesh = make_mesh(config.mesh)
    made = outline(config, mesh, length=arguments[2]["tokens"].shape[-1], num_steps=6)
    assert described(made.arguments) == described(arguments)
    assert text_of(made.build("full"), made.arguments) == text_of(step, arguments)
    assert ("token_types" in made.batch) == (task == "classify pairs")
    trains = set(tree.flatten(made.state.trainable))
    head = {"classifier.kernel", "classifier.bias"} if task != "embed" else set()
    if way[0] == "lora=null":
        assert {"embed.embedding", *head} <= trains
    else:
        assert {path for path in trains if ".lora_" not in path} == head
        assert not any("classifier.lora" in path for path in tree.flatten(made.frozen))


@pytest.mark.parametrize("task", ["classify", "embed"])
@pytest.mark.slow
def test_replicas_learn_a_task_by_themselves(task, tiny_run, tmp_path, stand_in):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TASKS[task]))
    summary = finetune(
        tiny_run(
            f"task={task}", f"data.train={file}", f"data.eval={file}", "train.sync=diloco", "mesh.data=2",
            "mesh.fsdp=4", "train.diloco.every=2", "train.max_steps=4", "train.diloco.outer_momentum=0",
            "train.diloco.outer_learning_rate=1.0", "train.learning_rate=0.02",
        )
    )  # fmt: skip
    assert summary["eval_after"]["loss"] < summary["eval_before"]["loss"]


def test_a_task_starts_from_an_encoder(tiny_run, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in TASKS["classify"]))
    config = tiny_run("task=classify", f"data.train={file}", "model.path=null", "lora=null")
    config.model.architecture = {"model_type": "llama"}
    with pytest.raises(ConfigError, match="task: classify starts from a trained encoder"):
        outline(config, make_mesh(), length=64)


def test_a_model_without_experts_has_none_to_balance(tiny_run):
    with pytest.raises(ConfigError, match="llama has no experts"):
        outline(tiny_run("train.router_aux_loss_coef=0.1"), make_mesh(MeshSection()), length=64).build("none")


def test_the_head_of_a_model_knows_its_labels(tmp_path):
    named = {"id2label": {"1": "red", "0": "green"}, "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **named}))
    (tmp_path / "model.safetensors").touch()
    of = {
        task: job.head_labels(build({"task": task, "model": {"path": str(tmp_path)}})) for task in ("classify", "tag")
    }
    assert of == {"classify": ["green", "red"], "tag": None}
    assert job.head_labels(build({"task": "classify"})) is None
