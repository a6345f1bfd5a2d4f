"""PEFT's format: adapters that PEFT wrote give PEFT's logits, and what is written here comes back as it was."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection, MeshSection
from jaxlean.errors import ModelError
from jaxlean.hub.adapter import read_adapter, write_adapter
from jaxlean.hub.families import FAMILIES
from jaxlean.hub.load import load
from jaxlean.hub.names import Names
from jaxlean.models.build import abstract
from jaxlean.models.decoder import DecoderConfig
from jaxlean.xla.mesh import make_mesh

FAMILY = FAMILIES["llama"]
SMALL = DecoderConfig(
    vocab_size=8, hidden_size=16, intermediate_size=12, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8
)
NAMES = Names(FAMILY, SMALL)


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        folders = (Path(__file__).parents[1] / "golden" / "adapters").iterdir()
        metafunc.parametrize("case", sorted(folder.name for folder in folders))


def adapted(model, folder):
    """The model with the adapter's matrices beside its kernels, and what was saved whole in the place of its own."""
    leaves = read_adapter(folder, model.names, model.params)
    new = tree.flatten(leaves)
    return model.with_params(tree.merge(tree.split(model.params, lambda path: path not in new)[0], leaves))


def test_an_adapter_of_peft_gives_the_logits_of_peft(case, golden, loaded, expected, says):
    model = adapted(loaded(case.split("__")[0]), golden / "adapters" / case)
    got, want = says(model, expected(f"adapters/{case}"))
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_merged_it_gives_the_same(case, golden, loaded, expected, says):
    base = loaded(case.split("__")[0])
    merged = base.with_params(lora.merge(adapted(base, golden / "adapters" / case).params))
    assert merged.graph == base.graph  # nothing of the adapter is left
    got, want = says(merged, expected(f"adapters/{case}"))
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_written_again_it_is_the_same_adapter(case, golden, loaded, tmp_path):
    """Also those whose layers differ in rank or scale, which PEFT states by patterns: tensor for tensor."""
    base, source = loaded(case.split("__")[0]), golden / "adapters" / case
    stated = json.loads((source / "adapter_config.json").read_text())
    config = LoraSection(
        r=stated["r"], lora_alpha=stated["lora_alpha"], use_dora=stated["use_dora"], use_rslora=stated["use_rslora"]
    )
    task = "classify" if stated.get("modules_to_save") else "generate"
    leaves = read_adapter(source, base.names, base.params)
    write_adapter(tmp_path / "again", base.names, leaves, config, base="x", task=task)
    again = tree.flatten(read_adapter(tmp_path / "again", base.names, base.params))
    assert again.keys() == tree.flatten(leaves).keys()
    for path, leaf in tree.flatten(leaves).items():
        np.testing.assert_allclose(again[path], leaf, rtol=1e-6, err_msg=path)
    ours, theirs = (load_file(at / "adapter_model.safetensors") for at in (tmp_path / "again", source))
    if not stated.get("rank_pattern") and not stated.get("layers_to_transform"):  # there missing rank is zeros
        assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in theirs.items()}


def fresh(config, targets="all-linear", seed=0):
    """The shapes of a base, and random adapter leaves as after training."""
    shapes = abstract(SMALL)[1]
    modules = lora.targets(shapes, targets, FAMILY.modules)
    whole = jax.eval_shape(lambda params: lora.add(params, modules, config, jax.random.key(0)), shapes)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith("lora_scale"):
            return np.full(leaf.shape, lora.scale(config), np.float32)
        return rng.normal(size=leaf.shape).astype(np.float32)

    return shapes, tree.map_with_path(draw, tree.split(whole, lambda path: ".lora_" in path)[0])


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    r=st.integers(1, 8),
    alpha=st.one_of(st.integers(1, 4096), st.floats(0.01, 500)),
    rslora=st.booleans(),
    dora=st.booleans(),
    targets=st.sampled_from(["all-linear", ["q_proj"], ["lm_head", "down_proj"], ["value", "gate"]]),
)
def test_written_and_read_is_what_it_was(r, alpha, rslora, dora, targets, tmp_path):
    config = LoraSection(r=r, lora_alpha=alpha, use_rslora=rslora, use_dora=dora, lora_dropout=0.25)
    shapes, leaves = fresh(config, targets)
    write_adapter(tmp_path / "adapter", NAMES, leaves, config, base="some/base")
    back = tree.flatten(read_adapter(tmp_path / "adapter", NAMES, shapes))
    assert back.keys() == tree.flatten(leaves).keys()
    for path, leaf in tree.flatten(leaves).items():
        np.testing.assert_allclose(back[path], leaf, rtol=1e-6 if path.endswith("lora_scale") else 0, err_msg=path)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["lora_alpha"] == pytest.approx(alpha, rel=1e-6)
    if isinstance(alpha, int):
        assert written["lora_alpha"] == alpha  # the number that the person wrote


def test_the_files_are_as_peft_writes_them(tmp_path):
    config = LoraSection(r=4, lora_alpha=6, lora_dropout=0.1, use_dora=True)
    _, leaves = fresh(config, ["q_proj", "down"])
    write_adapter(tmp_path / "adapter", NAMES, leaves, config, base="some/base")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["adapter"]
    assert sorted(x.name for x in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written == written | {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/base",
        "r": 4,
        "lora_alpha": 6.0,
        "lora_dropout": 0.1,
        "bias": "none",
        "target_modules": ["down_proj", "q_proj"],
        "use_dora": True,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "fan_in_fan_out": False,
    }
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    tensors = load_file(file)
    start = "base_model.model.model.layers.2.mlp.down_proj"
    assert {name: x.shape for name, x in tensors.items() if name.startswith(start)} == {
        f"{start}.lora_A.weight": (4, 12),
        f"{start}.lora_B.weight": (16, 4),
        f"{start}.lora_magnitude_vector": (16,),
    }
    assert len(tensors) == 2 * 3 * 3
    np.testing.assert_array_equal(
        tensors[f"{start}.lora_A.weight"], np.asarray(leaves["layers"]["mlp"]["down"]["lora_a"][2]).T
    )


def test_an_adapter_replaces_the_one_before(tmp_path):
    config = LoraSection(r=2)
    write_adapter(tmp_path / "adapter", NAMES, fresh(config, seed=1)[1], config, base="x")
    (tmp_path / "adapter" / "old").touch()
    shapes, leaves = fresh(config, ["up_proj"], seed=2)
    write_adapter(tmp_path / "adapter", NAMES, leaves, config, base="x")
    assert not (tmp_path / "adapter" / "old").exists()
    assert len(tree.flatten(read_adapter(tmp_path / "adapter", NAMES, shapes))) == 3


def test_what_was_not_written_as_it_was_is_an_error(tmp_path, monkeypatch):
    import safetensors.numpy

    config = LoraSection(r=2)
    shapes, leaves = fresh(config)
    write_adapter(tmp_path / "adapter", NAMES, leaves, config, base="first")
    save = safetensors.numpy.save_file

    def flip(tensors, file, **options):
        name = sorted(tensors)[0]
        save(tensors | {name: tensors[name] * 1.001}, file, **options)

    monkeypatch.setattr(safetensors.numpy, "save_file", flip)
    with pytest.raises(ModelError, match="the adapter read back is not the one written: layers"):
        write_adapter(tmp_path / "adapter", NAMES, leaves, config, base="second")
    # the one before is still there, whole
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "first"
    read_adapter(tmp_path / "adapter", NAMES, shapes)


def test_bfloat16_adapters_are_read(golden, loaded, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(golden / "adapters" / "llama_gqa__plain", folder)
    file = folder / "adapter_model.safetensors"
    save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(file).items()}, file)
    base = loaded("llama_gqa")
    for path, leaf in tree.flatten(read_adapter(folder, base.names, base.params)).items():
        assert leaf.dtype == jnp.float32, path


@pytest.mark.parametrize("variant", ["dora", "one_layer"])
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_over_a_quantized_base_it_is_the_same_adapter(variant, form, golden, loaded):
    folder = golden / "adapters" / f"llama_gqa__{variant}"
    base = load(golden / "llama_gqa", "float32", quantization=form)
    wanted = tree.flatten(read_adapter(folder, loaded("llama_gqa").names, loaded("llama_gqa").params))
    got = tree.flatten(read_adapter(folder, base.names, base.params))
    assert got.keys() == wanted.keys()
    for path, leaf in got.items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
    adapted(base, folder)(np.arange(12)[None])


def test_on_a_mesh_the_adapter_lies_beside_its_kernel(golden, loaded, expected):
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    base = load(golden / "llama_gqa", "float32", mesh)
    leaves = read_adapter(golden / "adapters" / "llama_gqa__dora", base.names, base.params)
    assert all(x.sharding.mesh == mesh and x.is_fully_replicated for x in jax.tree.leaves(leaves))
    wanted = expected("adapters/llama_gqa__dora")
    got = base.with_params(tree.merge(base.params, leaves))(wanted["tokens"])
    np.testing.assert_allclose(got, wanted["logits"], atol=1e-4)


@pytest.fixture
def broken(tmp_path):
    """(change of the tensors, change of the settings) -> the message that reading gives."""
    config = LoraSection(r=2)
    shapes, leaves = fresh(config, ["q_proj", "v_proj"])
    folder = tmp_path / "adapter"
    write_adapter(folder, NAMES, leaves, config, base="x")

    def read(change=lambda tensors: None, **settings_):
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        values = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(values | settings_))
        with pytest.raises(ModelError) as caught:
            read_adapter(folder, NAMES, shapes)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    return read


START = "base_model.model.model.layers.1.self_attn.q_proj"


def test_another_kind_of_adapter(broken):
    text = broken(peft_type="IA3")
    assert "not a LoRA adapter" in text
    assert "IA3" in text


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.weight",
        f"{START}.lora_B.bias",
        "base_model.model.model.layers.x.self_attn.q_proj.lora_A.weight",
    ],
)
def test_tensors_that_are_not_linear_lora(broken, name):
    text = broken(lambda tensors: tensors.update({name: np.zeros((2, 2), np.float32)}))
    assert f"an adapter tensor that is not supported: {name}" in text
    assert "merge_and_unload" in text


def test_names_without_the_prefix_are_no_silent_nothing(broken):
    bare = START.removeprefix("base_model.model.") + ".lora_A.weight"
    text = broken(lambda tensors: tensors.update({bare: np.zeros((2, 16), np.float32)}))
    assert "an adapter tensor without PEFT's prefix" in text
    assert "base_model.model..." in text


def test_half_a_pair(broken):
    assert f"lora_A or lora_B is missing: {START.removeprefix('base_model.model.')}" in broken(
        lambda t: t.pop(f"{START}.lora_B.weight")
    )
    text = broken(lambda t: [t.pop(name) for name in list(t) if "lora_A" in name])
    assert "lora_A or lora_B is missing" in text


def test_an_adapter_of_another_shape(broken):
    text = broken(lambda t: t.update({f"{START}.lora_A.weight": np.zeros((2, 17), np.float32)}))
    assert "an adapter that does not fit its base: model.layers.1.self_attn.q_proj" in text
    assert "lora_A (2, 17)" in text
    assert "lora_A (2, 16), lora_B (16, 2)" in text


def test_an_adapter_of_a_deeper_model(broken):
    deeper = START.replace("layers.1", "layers.3")
    text = broken(lambda t: t.update({f"{deeper}.lora_{x}.weight": t[f"{START}.lora_{x}.weight"].copy() for x in "AB"}))
    assert "an adapter for a layer that the base does not have: model.layers.3.self_attn.q_proj" in text
    assert "3 layers" in text


def test_an_adapter_of_a_head_that_is_tied(tmp_path, loaded):
    config = LoraSection(r=2)
    write_adapter(tmp_path / "adapter", NAMES, fresh(config, ["lm_head"])[1], config, base="x")
    with pytest.raises(ModelError, match=r"a module that the base does not have: base_model\.model\.lm_head"):
        read_adapter(tmp_path / "adapter", loaded("llama_tied").names, loaded("llama_tied").params)


def test_files_that_are_not_there_or_not_whole(broken, tmp_path):
    shapes = abstract(SMALL)[1]
    folder = tmp_path / "adapter"
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()

    def message(at):
        with pytest.raises(ModelError) as caught:
            read_adapter(at, NAMES, shapes)
        return str(caught.value)

    assert "no such adapter folder" in message(tmp_path / "nowhere")
    file.write_bytes(whole[:-5])
    assert "not a whole safetensors file" in message(folder)
    file.unlink()
    assert "an adapter file is missing" in message(folder)
    save_file({}, file)
    assert "the adapter holds no tensor" in message(folder)
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json" in message(folder)


def test_patterns_hold_for_the_modules_they_name(tmp_path):
    """PEFT looks a key up as a regex at the end of the module's name."""
    config = LoraSection(r=2, lora_alpha=4)
    shapes, leaves = fresh(config, ["q_proj", "v_proj"])
    folder = tmp_path / "adapter"
    write_adapter(folder, NAMES, leaves, config, base="x")
    values = json.loads((folder / "adapter_config.json").read_text())
    values["alpha_pattern"] = {r"layers\.[01]\.self_attn\.q_proj": 10, "proj": 99, "2.self_attn.q_proj": 20}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    back = read_adapter(folder, NAMES, shapes)["layers"]["attention"]
    np.testing.assert_allclose(back["query"]["lora_scale"], [5, 5, 10])
    np.testing.assert_allclose(back["value"]["lora_scale"], [2, 2, 2])
    del values["lora_alpha"], values["alpha_pattern"]  # PEFT's default is 8
    (folder / "adapter_config.json").write_text(json.dumps(values))
    back = read_adapter(folder, NAMES, shapes)["layers"]["attention"]
    np.testing.assert_allclose(back["value"]["lora_scale"], [4, 4, 4])


# ---- what trained whole beside the adapters


@pytest.fixture
def headed(loaded, golden):
    """(a BERT with labels, the leaves of an adapter of it with a head of its own)."""
    model = loaded("bert_classify")
    return model, read_adapter(golden / "adapters" / "bert_classify__plain", model.names, model.params)


def test_a_head_is_saved_as_peft_saves_modules(headed, tmp_path):
    model, adapter = headed
    labels = {"id2label": {"0": "a"}}
    write_adapter(
        tmp_path / "a", model.names, adapter, LoraSection(r=4), base="some/base", task="classify", settings=labels
    )
    stated = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert stated["task_type"] == "SEQ_CLS"
    assert stated["modules_to_save"] == ["classifier"]
    assert "classifier" not in stated["target_modules"]
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == labels
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    kernel = adapter["classifier"]["scores"]["kernel"]
    np.testing.assert_array_equal(tensors["base_model.model.classifier.weight"], kernel.T)
    assert tensors["base_model.model.classifier.bias"].shape == kernel.shape[1:]
    back = tree.flatten(read_adapter(tmp_path / "a", model.names, model.params))
    assert back.keys() == tree.flatten(adapter).keys()
    for path, leaf in tree.flatten(adapter).items():
        np.testing.assert_allclose(back[path], leaf, rtol=1e-6, err_msg=path)


def test_a_head_of_other_labels_does_not_fit(headed, tmp_path):
    model, adapter = headed
    write_adapter(tmp_path / "a", model.names, adapter, LoraSection(r=4), base="some/base", task="classify")
    params = tree.flatten(model.params)
    kernel = params["classifier.scores.kernel"]
    other = tree.unflatten({**params, "classifier.scores.kernel": jnp.zeros((kernel.shape[0], kernel.shape[1] + 1))})
    with pytest.raises(ModelError, match="a saved module that does not fit its base") as error:
        read_adapter(tmp_path / "a", model.names, other)
    assert "data.labels" in str(error.value)


def test_a_head_without_being_stated_is_not_supported(headed, tmp_path):
    model, adapter = headed
    write_adapter(tmp_path / "a", model.names, adapter, LoraSection(r=4), base="some/base", task="classify")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": None}))
    with pytest.raises(ModelError, match="not supported"):
        read_adapter(tmp_path / "a", model.names, model.params)
