"""A quantized model: better than the nearest numbers, layers that stay wide, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import codec, load, tree
from jaxlean.compress.quantize import SCHEMES, How, Scheme, quantize
from jaxlean.errors import ConfigError, ModelError

W4 = Scheme(4, 32, activations=False)


def batches(model, *, num=2, rows=4, length=48):
    """Rows with a structure: words of a small vocabulary, so that features hang together."""
    random = np.random.default_rng(0)
    one = {
        "segments": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
    }
    return [{"tokens": random.integers(100, 160, (rows, length), np.int32), **one} for _ in range(num)]


def off(model, wanted, rows):
    got = [np.asarray(m(rows["tokens"])) for m in (model, wanted)]
    return np.linalg.norm(got[0] - got[1]) / np.linalg.norm(got[1])


@pytest.fixture(scope="module")
def model(tiny_base):
    return load(tiny_base, "float32")


@pytest.fixture(scope="module")
def quantized(model):
    """By (scheme, method): the model and what became of its layers."""
    hows = [How(W4), How(W4, "gptq"), How(W4, "awq"), How(SCHEMES["w8a16"]), How(SCHEMES["w8a8"], "gptq", None)]
    data = batches(model)
    return {(how.scheme, how.method): quantize(model, how, data if how.needs_data else ()) for how in hows}


def test_each_method_spoils_less_than_the_nearest_numbers(model, quantized):
    """Of the first layer, which all of them give the same inputs."""
    _, nearest = quantize(model, How(W4, max_error=9.0), batches(model))  # with data, so that its errors are of outputs

    def mean(found):
        return np.mean([rounded.error for rounded in found if rounded.layer == 0])

    assert mean(quantized[W4, "gptq"][1]) < 0.75 * mean(nearest)
    assert mean(quantized[W4, "awq"][1]) < 0.97 * mean(nearest)
    held_out = batches(model, num=3)[-1]
    four = off(quantized[W4, "gptq"][0], model, held_out)
    assert four < off(quantized[W4, "rtn"][0], model, held_out)
    # what comes out of this model of random weights is no longer in proportion to what its layers spoil
    assert off(quantized[SCHEMES["w8a16"], "rtn"][0], model, held_out) < 0.5 * four
    assert off(quantized[SCHEMES["w8a8"], "gptq"][0], model, held_out) < 0.5 * four


def test_what_is_held(quantized):
    small, found = quantized[W4, "gptq"]
    leaves = tree.flatten(small.params)
    assert leaves["layers.mlp.down.kernel_int4"].shape == (2, 32, 32)
    assert leaves["layers.mlp.down.kernel_scales"].shape == (2, 2, 32)
    assert "embed.embedding" in leaves
    assert not any(path.endswith(".kernel") for path in leaves)
    assert len(found) == 14
    assert all(0 < rounded.error < 0.3 and not rounded.kept for rounded in found)
    assert small.matmul == "default"
    eight, _ = quantized[SCHEMES["w8a8"], "gptq"]
    assert eight.matmul == "stored"
    assert tree.flatten(eight.params)["layers.mlp.down.kernel_int8"].dtype == jnp.int8


def test_the_errors_are_those_of_the_outputs(model, quantized):
    """Of the first layer's queries, by hand: what goes in is the embedding, normalised."""
    found = {(r.layer, r.module): r.error for r in quantized[W4, "gptq"][1]}
    rows = batches(model)
    table, scale = model.params["embed"]["embedding"], model.params["layers"]["attention_norm"]["scale"][0]
    x = np.concatenate([np.asarray(table, np.float64)[one["tokens"].ravel()] for one in rows])
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.config.norm_eps) * np.asarray(scale)
    held = codec.kernels(tree.flatten(quantized[W4, "gptq"][0].params))["layers.attention.query"]
    small = np.asarray(codec.decode(jax.tree.map(lambda leaf: leaf[0], held), jnp.float32), np.float64)
    wide = np.asarray(model.params["layers"]["attention"]["query"]["kernel"][0], np.float64)
    wanted = np.linalg.norm(x @ (small - wide)) / np.linalg.norm(x @ wide)
    assert found[0, "attention.query"] == pytest.approx(wanted, rel=0.01)


def test_layers_stay_wide_by_rule_and_by_error(model, quantized):
    how = How(W4, "rtn", ignore=(r"layers\.1\.mlp\.down$", r"attention\.key"))
    mixed, found = quantize(model, how)
    kept = {(rounded.layer, rounded.module) for rounded in found if rounded.kept}
    assert kept == {(1, "mlp.down"), (0, "attention.key"), (1, "attention.key")}
    leaves = tree.flatten(mixed.params)
    # a kernel that stays wide everywhere makes no new kind; one that does in one layer only, does
    assert [kind.wide for kind in mixed.config.all_kinds] == [(), ("mlp.down",)]
    np.testing.assert_array_equal(
        leaves["layers.1.mlp.down.kernel"][0], model.params["layers"]["mlp"]["down"]["kernel"][1]
    )
    assert "layers.0.mlp.down.kernel_int4" in leaves
    assert "layers.0.attention.key.kernel" in leaves
    rows = batches(model)[0]
    assert 0 < off(mixed, model, rows) < off(quantized[W4, "rtn"][0], model, rows)

    errors = sorted(rounded.error for rounded in quantized[W4, "gptq"][1])
    limit = (errors[-3] + errors[-4]) / 2
    _, some = quantize(model, How(W4, "gptq", max_error=limit), batches(model))
    assert 1 <= sum(rounded.kept for rounded in some) <= 8
    assert all(rounded.error <= limit for rounded in some)


def test_what_is_fused_where_it_is_served_is_kept_together(model):
    """vLLM refuses a model whose queries are wide and whose keys are not."""
    data = batches(model)
    _, found = quantize(model, How(W4, max_error=9.0), data)
    first = {rounded.module: rounded.error for rounded in found if rounded.layer == 0}
    for group in (("attention.query", "attention.key", "attention.value"), ("mlp.gate", "mlp.up")):
        errors = sorted(first[module] for module in group)
        _, some = quantize(model, How(W4, max_error=(errors[-1] + errors[-2]) / 2), data)
        kept = {rounded.module for rounded in some if rounded.layer == 0 and rounded.kept}
        assert kept >= set(group)


def test_an_encoder(encoder):
    plain = load(encoder, "float32")
    small, found = quantize(plain, How(SCHEMES["w8a8"], "gptq", None), batches(plain))
    assert len(found) == 12
    rows = batches(plain)[0]
    assert off(small, plain, rows) < 0.05


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        (How(Scheme(4, 48, activations=False)), ModelError, "a group size that does not divide"),
        (How(W4, "gptq"), ConfigError, "no calibration rows"),
        (How(W4, ignore=("mlp.dwon",)), ConfigError, "finds no linear layer"),
        (How(W4, ignore=(".",)), ConfigError, "nothing is left to quantize"),
    ],
    ids=["groups", "no rows", "a rule for nothing", "all kept"],
)
def test_what_is_refused(model, how, error, words):
    with pytest.raises(error, match=words):
        quantize(model, how)


def test_nothing_is_quantized_twice(quantized):
    with pytest.raises(ModelError, match="the model is quantized already"):
        quantize(quantized[W4, "rtn"][0], How(W4))
