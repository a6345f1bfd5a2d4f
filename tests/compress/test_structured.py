"""Smaller dense models: against the whole one with what went made silent, and least squares by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import load, tree
from jaxlean.compress import structured
from jaxlean.compress.walk import walk
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.write import write_model

pytestmark = pytest.mark.slow


def batches(model, *, num=2, rows=2, length=40, seed=0):
    random, vocab = np.random.default_rng(seed), model.config.vocab_size
    segments = np.repeat([[1] * 20 + [2] * 17 + [0] * 3], rows, axis=0).astype(np.int32)
    positions = np.repeat([[*range(20), *range(17), 0, 0, 0]], rows, axis=0).astype(np.int32)
    return [
        {"tokens": random.integers(0, vocab, (rows, length), np.int32), "segments": segments, "positions": positions}
        for _ in range(num)
    ]


def said(model, batch):
    found = np.asarray(model(batch["tokens"], segments=batch["segments"], positions=batch["positions"]))
    return found[batch["segments"] > 0]


def silent(model, *, neurons=(), groups=(), features=()):
    """The model with zeros where these neurons, groups of heads and features of the stream would be heard."""
    config = model.config
    each = config.num_heads // config.num_kv_heads * config.head_dim
    rows = [group * each + i for group in groups for i in range(each)]

    def mute(path, leaf):
        leaf = np.array(leaf)
        if path.endswith("mlp.down.kernel"):
            leaf[:, list(neurons)] = 0
        if path.endswith("attention.out.kernel"):
            leaf[:, rows] = 0
        if path.endswith(("down.kernel", "out.kernel", "down.bias", "out.bias", "out_norm.bias", ".embedding")):
            leaf[..., list(features)] = 0
        return jnp.asarray(leaf)

    return model.with_params(tree.map_with_path(mute, model.params))


NEURONS, GROUPS, FEATURES = (0, 3, 11, 15), (0,), (1, 2, 9, 14)


@pytest.mark.parametrize(
    ("name", "silence"),
    [
        ("llama_gqa", {"neurons": NEURONS, "groups": GROUPS, "features": FEATURES}),
        ("phi3_window", {"neurons": NEURONS, "groups": GROUPS, "features": FEATURES}),
        ("gemma2_soft", {"neurons": NEURONS, "groups": GROUPS}),
        ("qwen3_tied", {"neurons": NEURONS, "groups": GROUPS, "features": FEATURES}),
        ("starcoder2_old", {"neurons": NEURONS, "groups": GROUPS}),
        ("gpt2_tied", {"neurons": NEURONS}),
        ("bert_old", {"neurons": NEURONS}),
    ],
)
@pytest.mark.usefixtures("small_machine")
def test_what_is_not_heard_goes_first_and_changes_nothing(golden, tmp_path, name, silence):
    model = load(golden / name, "float32")
    if model.config.norm == "rms":  # theirs is as large as what is normalised, so that it shows in their tests
        small_eps = {
            "config": replace(model.config, norm_eps=1e-9),
            "hf_config": model.hf_config | {"rms_norm_eps": 1e-9},
        }
        model = replace(model, **small_eps)
    model = silent(model, **silence)
    config, given = model.config, batches(model)
    wanted = {
        "intermediate_size": config.intermediate_size - len(silence["neurons"]),
        "num_kv_heads": config.num_kv_heads - len(silence.get("groups", ())),
        "hidden_size": config.hidden_size - len(silence.get("features", ())),
    }
    small, table = structured.width(model, given, **wanted)
    for key, size in wanted.items():
        assert getattr(small.config, key) == size
    assert len(table) == config.num_layers * (1 + ("groups" in silence))
    assert max(row.error for row in table) < 1e-6
    want = said(model, given[0])
    np.testing.assert_allclose(said(small, given[0]), want, rtol=0, atol=3e-5 * np.abs(want).max())
    # and its files are those of such a model
    write_model(small, tmp_path / "small")
    again = load(tmp_path / "small", "float32")
    assert again.config == small.config
    np.testing.assert_array_equal(said(again, given[0]), said(small, given[0]))


@pytest.mark.usefixtures("small_machine")
def test_rows_that_stay_make_up_for_those_that_go(tiny_base):
    model = load(tiny_base, "float32")
    given = batches(model, num=4)
    plain, without = structured.width(model, given, intermediate_size=48, compensate=False)
    fitted, fit = structured.width(model, given, intermediate_size=48)
    assert all(one.error < 0.8 * other.error for one, other in zip(fit[:1], without[:1], strict=True))
    # the first layer, of which nothing before it was changed, by least squares in float64
    seen = []
    walk(model, given, seen.append)
    gram, kernel = (np.asarray(x, np.float64) for x in (seen[0].inputs["mlp.down"].gram, seen[0].kernels()["mlp.down"]))
    energy = np.diag(gram) * (kernel**2).sum(1)
    stay = np.sort(np.argsort(-energy)[:48])
    gone = np.setdiff1d(np.arange(64), stay)
    among = gram[np.ix_(stay, stay)] + 0.01 * np.diag(gram)[stay].mean() * np.eye(48)
    want = kernel[stay] + np.linalg.solve(among, gram[np.ix_(stay, gone)] @ kernel[gone])
    np.testing.assert_allclose(fitted.params["layers"]["mlp"]["down"]["kernel"][0], want, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(
        plain.params["layers"]["mlp"]["down"]["kernel"][0], seen[0].kernels()["mlp.down"][stay]
    )
    np.testing.assert_array_equal(
        plain.params["layers"]["mlp"]["up"]["kernel"][0], seen[0].kernels()["mlp.up"][:, stay]
    )


@pytest.mark.usefixtures("small_machine")
def test_of_each_group_as_many_heads_go(tiny_base):
    model = load(tiny_base, "float32")
    out = np.array(model.params["layers"]["attention"]["out"]["kernel"]).reshape(2, 4, 8, 32)
    out[0, [1, 2]] = out[1, [0, 3]] = 0  # of groups (0, 1) and (2, 3)
    deaf = model.with_params(
        tree.map_with_path(
            lambda path, x: jnp.asarray(out.reshape(x.shape)) if path.endswith("out.kernel") else x, model.params
        )
    )
    given = batches(model)
    small, _ = structured.width(deaf, given, num_heads=2)
    assert (small.config.num_heads, small.config.num_kv_heads) == (2, 2)
    want = said(deaf, given[0])
    np.testing.assert_allclose(said(small, given[0]), want, rtol=0, atol=3e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ["smollm3_list", "gemma3_window"])
@pytest.mark.usefixtures("small_machine")
def test_layers_that_do_nothing_go(golden, tmp_path, name):
    model = load(golden / name, "float32")
    config, given = model.config, batches(model, num=1)
    keep = [number for number in range(config.num_layers) if number != 1]
    small = structured.depth(model, keep)
    assert small.config.all_kinds == tuple(config.all_kinds[number] for number in keep)
    layers = structured.take_apart(model.params["layers"], config.all_kinds)
    idle = tree.map_with_path(
        lambda path, x: (
            x * 0 if path.endswith(("out.kernel", "down.kernel", "out.bias", "down.bias", "out_norm.scale")) else x
        ),
        layers[1],
    )
    if config.norm_offset:  # Gemma's norms of what comes out: zero is where the scale is -1
        idle = tree.map_with_path(lambda path, x: x - config.norm_offset if "out_norm" in path else x, idle)
    layers[1] = idle
    whole = model.with_params({**model.params, "layers": structured.put_together(layers, config.all_kinds)})
    influence = structured.influences(whole, given)
    assert structured.most_influential(influence, len(keep)) == keep
    assert influence[1] == pytest.approx(0, abs=1e-5)
    want = said(whole, given[0])
    np.testing.assert_allclose(said(small, given[0]), want, rtol=0, atol=1e-5 * np.abs(want).max())
    write_model(small, tmp_path / "small")
    assert load(tmp_path / "small", "float32").config == small.config


def test_what_cannot_be_made_smaller(golden, tiny_base):
    model = load(tiny_base, "float32")
    given = batches(model, num=1)
    for asked, words in (
        ({"intermediate_size": 65}, "intermediate_size that no pruning gives"),
        ({"num_kv_heads": 0}, "num_kv_heads that no pruning gives"),
        ({"num_heads": 3}, "do not share keys and values as before"),
        ({"num_heads": 4, "num_kv_heads": 1}, "at most 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            structured.width(model, given, **asked)
    for keep in ([], [1, 0], [0, 2]):
        with pytest.raises(ConfigError, match="numbers of layers, ascending"):
            structured.depth(model, keep)
    for name, asked, words in (
        ("mixtral_old", {"intermediate_size": 8}, "a mixture of experts is not made narrower"),
        ("deepseekv2_lite", {"num_kv_heads": 1}, "is not made narrower"),
        ("olmo2_gqa", {"num_kv_heads": 1}, "olmo2 normalises the queries of all heads together"),
        ("olmo2_gqa", {"hidden_size": 8}, "olmo2 normalises what its branches give by all features"),
    ):
        other = load(golden / name, "float32")
        with pytest.raises(ModelError, match=words):
            structured.width(other, given, **asked)
