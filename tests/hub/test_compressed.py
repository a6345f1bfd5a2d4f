"""compressed-tensors: packing by hand, files written and read back, mixed layers, what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxlean import codec, load, tree
from jaxlean.compress.quantize import SCHEMES, How, quantize
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.compressed import Scheme, pack, read_scheme, settings, unpack
from jaxlean.hub.write import write_model

GROUPS = Scheme(4, 16, activations=False)
SCHEMES_TO_WRITE = {
    "w8a8": SCHEMES["w8a8"], "w8a16": SCHEMES["w8a16"], "w8a16 in groups": Scheme(8, 32, activations=False),
    "w4a16": GROUPS, "w4a16 a column": Scheme(4, None, activations=False),
}  # fmt: skip


@pytest.mark.parametrize(("bits", "values"), [(4, [[-8, -7, 0, 7, 1, 2, 3, 4, 5]]), (8, [[-128, -1, 0, 127, 5]])])
def test_packing_by_hand(bits, values):
    """Element i at bit (i mod (32 / b)) b of word floor(i b / 32), plus 2^(b - 1)."""
    words = pack(np.asarray(values, np.int8), bits)
    number = sum((v + 2 ** (bits - 1)) << (i * bits) for i, v in enumerate(values[0]))
    by_hand = [(number >> (32 * word)) & 0xFFFFFFFF for word in range(words.shape[1])]
    assert words.dtype == np.int32
    np.testing.assert_array_equal(words.view(np.uint32)[0], by_hand)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 40), st.sampled_from([4, 8]))
def test_what_is_packed_is_unpacked(seed, rows, columns, bits):
    half = 2 ** (bits - 1)
    values = np.random.default_rng(seed).integers(-half, half, (rows, columns)).astype(np.int8)
    np.testing.assert_array_equal(unpack(pack(values, bits), columns, bits), values)


@pytest.mark.parametrize("scheme", SCHEMES_TO_WRITE.values(), ids=SCHEMES_TO_WRITE.keys())
def test_the_settings_say_the_scheme(scheme):
    assert read_scheme({"quantization_config": settings(scheme)}, "config.json") == scheme
    assert read_scheme({}, "config.json") is None
    assert read_scheme({"quantization_config": {"quant_method": "mxfp4"}}, "config.json") is None


@pytest.fixture(scope="module")
def model(tiny_base):
    return load(tiny_base, "float32")


def logits(model):
    return np.asarray(model(np.arange(5, 29, dtype=np.int32).reshape(2, 12)))


@pytest.mark.parametrize("name", SCHEMES_TO_WRITE)
def test_what_is_written_is_read(model, tmp_path, name):
    scheme = SCHEMES_TO_WRITE[name]
    small, _ = quantize(model, How(scheme))
    write_model(small, tmp_path / "small")
    again = load(tmp_path / "small", "float32")
    ours, theirs = tree.flatten(small.params), tree.flatten(again.params)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(theirs[path], leaf, err_msg=path)
    assert again.matmul == ("stored" if name == "w8a8" else "default")
    np.testing.assert_array_equal(logits(again), logits(small))
    found = load_file(tmp_path / "small" / "model.safetensors")
    up = "model.layers.1.mlp.up_proj"
    kernel = codec.decode({k: v[1] for k, v in codec.kernels(ours)["layers.mlp.up"].items()}, jnp.float32)
    if name == "w8a8":
        wide = found[f"{up}.weight"] * found[f"{up}.weight_scale"]
    else:
        assert found[f"{up}.weight_shape"].tolist() == [64, 32]
        values = unpack(found[f"{up}.weight_packed"], 32, scheme.bits)
        scales = found[f"{up}.weight_scale"]
        wide = values * np.repeat(scales, 32 // scales.shape[1], axis=1)
    np.testing.assert_allclose(wide.T, kernel, rtol=1e-6)
    # a group that is no more than a column of some matrices and all of it of others is one scheme
    stated = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert stated["ignore"] == ["lm_head"]
    assert stated["config_groups"]["group_0"]["weights"]["group_size"] == scheme.group_size


def test_layers_that_stayed_wide_are_read_as_such(model, tmp_path):
    mixed, _ = quantize(model, How(GROUPS, ignore=(r"layers\.1\.mlp\.down$", "attention.key")))
    write_model(mixed, tmp_path / "mixed")
    again = load(tmp_path / "mixed", "float32")
    assert [kind.wide for kind in again.config.all_kinds] == [(), ("mlp.down",)]
    np.testing.assert_array_equal(logits(again), logits(mixed))
    ignore = json.loads((tmp_path / "mixed" / "config.json").read_text())["quantization_config"]["ignore"]
    attention = [f"model.layers.{i}.self_attn.k_proj" for i in range(2)]
    assert ignore == ["lm_head", *sorted([*attention, "model.layers.1.mlp.down_proj"])]


TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def change(folder, **changes):
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    whole = raw["quantization_config"]
    group = whole["config_groups"]["group_0"]
    for key, value in changes.items():
        next((part for part in (group, group["weights"]) if key in part), whole)[key] = value
    file.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"symmetric": False}, "weights.symmetric"),
        ({"actorder": "group"}, "weights.actorder"),
        ({"num_bits": 3}, "weights.num_bits"),
        ({"strategy": "block"}, "weights.strategy"),
        ({"format": "marlin-24"}, "format"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"transform_config": {"config_groups": {"R4": {"type": "hadamard"}}}}, "transform_config"),
        ({"output_activations": {"num_bits": 8}}, "output_activations"),
        ({"input_activations": TOKEN}, "input_activations"),  # W4A8
        ({"input_activations": TOKEN | {"symmetric": False}}, "input_activations.symmetric"),
    ],
)
def test_schemes_that_are_not_read(model, tmp_path, changes, words):
    write_model(quantize(model, How(GROUPS))[0], tmp_path / "small")
    change(tmp_path / "small", **changes)
    with pytest.raises(ModelError, match=f"a quantized checkpoint that is not read: {words}") as caught:
        load(tmp_path / "small")
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ignore": ["re:(["]}, "quantization_config.ignore is malformed"),
        ({"ignore": "lm_head"}, "quantization_config.ignore is malformed"),
        ({"config_groups": {"group_0": None}}, "quantization_config.config_groups is malformed"),
        ({"weights": "int4"}, "quantization_config.config_groups is malformed"),
        ({"group_size": 0}, "weights.group_size is malformed"),
        ({"group_size": -1}, "weights.group_size is malformed"),
    ],
)
def test_what_is_no_scheme_at_all(changes, words):
    raw = {"quantization_config": settings(Scheme(4, 32, activations=False))}
    whole = raw["quantization_config"]
    group = whole["config_groups"]["group_0"]
    for key, value in changes.items():
        next((part for part in (group, group["weights"]) if key in part), whole)[key] = value
    with pytest.raises(ModelError, match=words):
        read_scheme(raw, "config.json")


def test_what_does_not_fit(model, tmp_path):
    folder = tmp_path / "small"
    write_model(quantize(model, How(GROUPS))[0], folder)
    with pytest.raises(ConfigError, match="the model is quantized already"):
        load(folder, quantization="nf4")
    with pytest.raises(ConfigError, match="a quantized matrix cannot train"):
        load(folder, trains=lambda path: True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight_scale"
    save_file({k: v[:, :1].copy() if k == name else v for k, v in tensors.items()}, file)
    with pytest.raises(ModelError, match=r"a tensor has the wrong shape: model\.layers\.0\.mlp\.up_proj\.weight_scale"):
        load(folder)
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    with pytest.raises(ModelError, match="a tensor of a quantized weight is missing: " + name):
        load(folder)


@pytest.mark.parametrize("scheme", [SCHEMES["w8a8"], GROUPS], ids=["int-quantized", "pack-quantized"])
def test_a_head_in_fewer_bits_is_refused(model, tmp_path, scheme):
    """Its whole numbers would be taken for weights."""
    folder = tmp_path / "small"
    write_model(quantize(model, How(scheme))[0], folder)
    raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    raw["quantization_config"]["ignore"] = []
    (folder / "config.json").write_text(json.dumps(raw))
    found = load_file(folder / "model.safetensors")
    layer = [name for name in found if name.startswith("model.layers.0.mlp.down_proj.")]
    size, inputs = found["model.embed_tokens.weight"].shape
    of_head = {"lm_head" + name.removeprefix("model.layers.0.mlp.down_proj"): found[name] for name in layer}
    of_head |= {k: np.resize(v, (size, *v.shape[1:])) for k, v in of_head.items() if v.ndim == 2}
    if scheme.activations:
        of_head["lm_head.weight"] = np.ones((size, inputs), np.int8)
    save_file(found | of_head, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"a quantized tensor that is not read: lm_head\.weight"):
        load(folder)


def test_what_files_hold_beside_the_layers_is_no_layer(golden, tmp_path):
    """An encoder's pooler, which vectors do not need, is a linear layer to whoever loads the folder."""
    encoder = load(golden / "bert_sentence", "float32")
    write_model(quantize(encoder, How(SCHEMES["w8a16"]))[0], tmp_path / "small")
    assert "pooler.dense.weight" in load_file(tmp_path / "small" / "model.safetensors")
    stated = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert stated["ignore"] == ["pooler.dense"]
