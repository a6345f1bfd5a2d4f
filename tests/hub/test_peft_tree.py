"""Adapters as trees by themselves: what PEFT wrote is read without its base, and written again as it was."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlean import tree
from jaxlean.errors import ModelError
from jaxlean.hub import peft_tree
from jaxlean.hub.adapter import read_adapter
from jaxlean.hub.adapter_file import PREFIX, SETTINGS, TENSORS

ADAPTERS = Path(__file__).parents[1] / "golden" / "adapters"
Q = "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts"


@pytest.fixture
def made(tmp_path):
    """`made(tensors, r=2, ...)`: a folder with an adapter of these tensors (names without the prefix)."""

    def make(tensors, name="adapter", metadata=None, **settings):
        folder = tmp_path / name
        folder.mkdir()
        stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | settings
        (folder / SETTINGS).write_text(json.dumps(stated))
        save_file({PREFIX + n: x for n, x in tensors.items()}, folder / TENSORS, metadata=metadata)
        return folder

    return make


def pair(name, dim_in=6, r=2, dim_out=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{name}.lora_A.weight": rng.normal(size=(r, dim_in)).astype(np.float32),
        f"{name}.lora_B.weight": rng.normal(size=(dim_out, r)).astype(np.float32),
    }


@pytest.mark.parametrize("case", sorted(folder.name for folder in ADAPTERS.iterdir()))
def test_what_peft_wrote_comes_back(case, tmp_path):
    adapter = peft_tree.read(ADAPTERS / case)
    peft_tree.write(tmp_path, adapter)
    ours, theirs = load_file(tmp_path / TENSORS), load_file(ADAPTERS / case / TENSORS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    again = peft_tree.read(tmp_path)
    assert (again.kernels, again.parameters) == (adapter.kernels, adapter.parameters)
    stated = [json.loads((folder / SETTINGS).read_text()) for folder in (tmp_path, ADAPTERS / case)]
    if not stated[1]["use_rslora"] and not stated[1]["rank_pattern"]:
        assert stated[0] == stated[1]


@pytest.mark.parametrize("case", ["llama_gqa__patterns", "qwen3_tied__rslora", "mixtral_two__experts"])
def test_its_numbers_are_those_that_the_base_gets(case, loaded):
    base = loaded(case.split("__")[0])
    wanted = tree.flatten(read_adapter(ADAPTERS / case, base.names, base.params))
    found = peft_tree.read(ADAPTERS / case)
    leaves = tree.flatten(found.leaves)
    for name in ["q_proj", "experts.down_proj"]:
        module = next(
            (m for m in found.modules if m.endswith(f"layers.0.{'mlp' if '.' in name else 'self_attn'}.{name}")), None
        )
        if module is None:
            continue
        ours = "layers.attention.query" if name == "q_proj" else "layers.mlp.experts.down"
        a, b, scale = (leaves[f"{module}.{leaf}"] for leaf in ("lora_a", "lora_b", "lora_scale"))
        theirs = [np.asarray(wanted[f"{ours}.{leaf}"][0]) for leaf in ("lora_a", "lora_b", "lora_scale")]
        np.testing.assert_allclose(
            scale[..., None, None] * (a @ b), theirs[2][..., None, None] * (theirs[0] @ theirs[1]), rtol=1e-5, atol=1e-6
        )


def test_experts_have_a_dim_of_their_own(made):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3 * 2, 6)).astype(np.float32), rng.normal(size=(5, 2 * 3)).astype(np.float32)
    folder = made(
        {f"{EXPERTS}.lora_A.weight": a, f"{EXPERTS}.lora_B.weight": b}, target_parameters=["mlp.experts.down_proj"]
    )
    found = peft_tree.read(folder)
    assert found.modules == [f"{EXPERTS}.down_proj"]
    assert found.parameters == {f"{EXPERTS}.down_proj"}
    leaves = tree.flatten(found.leaves)
    for expert in range(3):  # as peft.tuners.lora.layer.ParamWrapper.get_delta_weight has it
        wanted = np.einsum("ri,or->io", a.reshape(3, 2, 6)[expert], b.reshape(5, 2, 3)[..., expert])
        got = leaves[f"{EXPERTS}.down_proj.lora_a"][expert] @ leaves[f"{EXPERTS}.down_proj.lora_b"][expert]
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_array_equal(leaves[f"{EXPERTS}.down_proj.lora_scale"], [2, 2, 2])


def test_a_parameter_is_told_by_how_deep_it_is_wrapped(made):
    both = {
        "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
        "rank_pattern": {f"{EXPERTS}.down_proj": 1},
    }
    inner, outer = pair(f"{EXPERTS}.base_layer", 6, 4, 8), pair(EXPERTS, 4, 2, 6)
    found = peft_tree.read(made(inner | outer, **both))
    leaves = tree.flatten(found.leaves)
    assert leaves[f"{EXPERTS}.gate_up_proj.lora_a"].shape == (2, 6, 2)
    assert leaves[f"{EXPERTS}.down_proj.lora_a"].shape == (2, 4, 1)
    with pytest.raises(ModelError, match="an adapter of more parameters than target_parameters has"):
        peft_tree.read(made(inner | outer, "one", target_parameters=["experts.down_proj"]))
    with pytest.raises(ModelError, match=r"(?s)whose order is not known.*got:    bias, down_proj"):
        peft_tree.read(made(inner | outer, "two", target_parameters=["experts.down_proj", "experts.bias"]))
    # a bare name is one of experts, and makes no parameter of other modules
    bare = peft_tree.read(made(outer | pair(Q), "bare", target_parameters=["down_proj"]))
    assert (bare.modules, bare.parameters) == ([f"{EXPERTS}.down_proj", Q], {f"{EXPERTS}.down_proj"})


def test_a_convolution_keeps_its_form(made, tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 3, 3)).astype(np.float32), rng.normal(size=(5, 2, 1, 1)).astype(np.float32)
    folder = made({"conv.lora_A.weight": a, "conv.lora_B.weight": b})
    found = peft_tree.read(folder)
    leaves = tree.flatten(found.leaves)
    np.testing.assert_array_equal(leaves["conv.lora_a"] @ leaves["conv.lora_b"], (b[..., 0, 0] @ a.reshape(2, 27)).T)
    (tmp_path / "again").mkdir()
    peft_tree.write(tmp_path / "again", found)
    np.testing.assert_array_equal(load_file(tmp_path / "again" / TENSORS)[f"{PREFIX}conv.lora_A.weight"], a)


def test_what_else_there_is_stays_under_its_name(made, tmp_path):
    head = {"classifier.weight": np.ones((3, 4), np.float32), "classifier.bias": np.zeros(3, np.float32)}
    magnitude = {f"{Q}.lora_magnitude_vector.weight": np.ones(5, np.float32)}
    folder = made(pair(Q) | head | magnitude, use_dora=True, metadata={"jaxlean.matmul": "sparse"})
    found = peft_tree.read(folder)
    assert tree.flatten(found.leaves).keys() == {
        *head, *(f"{Q}.{leaf}" for leaf in ("lora_a", "lora_b", "lora_scale", "lora_magnitude")),
    }  # fmt: skip
    assert found.over == {"matmul": "sparse"}
    (tmp_path / "again").mkdir()
    peft_tree.write(tmp_path / "again", found)
    assert peft_tree.read(tmp_path / "again").over == {"matmul": "sparse"}
    assert f"{PREFIX}{Q}.lora_magnitude_vector" in load_file(tmp_path / "again" / TENSORS)


def test_bfloat16_is_read(made):
    tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in pair(Q).items()}
    leaf = tree.flatten(peft_tree.read(made(tensors)).leaves)[f"{Q}.lora_a"]
    np.testing.assert_array_equal(leaf.astype(np.float32), tensors[f"{Q}.lora_A.weight"].T.astype(np.float32))


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        ({f"{Q}.lora_embedding_A": np.ones((2, 2), np.float32)}, {}, "an adapter tensor that is not supported"),
        ({f"{Q}.lora_A.weight": np.ones((2, 2), np.float32)}, {}, f"lora_A or lora_B is missing: {Q}"),
        (pair(Q) | {f"{Q}.lora_A.weight": np.ones((3, 6), np.float32)}, {}, "do not fit each other"),
        (pair(Q, r=0), {}, "do not fit each other"),
        ({}, {}, "the adapter holds no tensor"),
        (pair(Q), {"lora_bias": True}, "more than LoRA or DoRA: lora_bias"),
        (pair(Q), {"alora_invocation_tokens": [1, 2]}, "more than LoRA or DoRA: alora_invocation_tokens"),
        (pair(Q), {"init_lora_weights": "pissa_niter_4"}, "a base that its own start has changed"),
        (pair(Q), {"peft_type": "IA3"}, "not a LoRA adapter"),
        (pair(f"{EXPERTS}", r=3), {"target_parameters": ["experts.down_proj"]}, "do not fit each other"),
    ],
)
def test_what_is_not_lora_is_refused(made, tensors, settings, words):
    folder = made(tensors, **settings)
    with pytest.raises(ModelError, match=words) as caught:
        peft_tree.read(folder)
    assert str(folder) in str(caught.value)


def test_names_without_the_prefix_are_refused(made):
    folder = made({})
    save_file(pair(Q), folder / TENSORS)
    with pytest.raises(ModelError, match="an adapter tensor without PEFT's prefix"):
        peft_tree.read(folder)


def test_what_was_not_written_as_it_was_is_an_error(made, tmp_path, monkeypatch):
    import safetensors.numpy

    save, adapter = safetensors.numpy.save_file, peft_tree.read(made(pair(Q)))

    def flip(tensors, file, **options):
        name = sorted(tensors)[0]
        save(tensors | {name: tensors[name] * 1.001}, file, **options)

    monkeypatch.setattr(safetensors.numpy, "save_file", flip)
    with pytest.raises(ModelError, match=f"the adapter read back is not the one written: {Q}.lora_a"):
        peft_tree.write(tmp_path, adapter)
