"""The mean of adapters against dense float64 matrices: exact, plain, of fewer ranks; any ranks, scales, modules."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean import tree
from jaxlean.adapt.average import average
from jaxlean.adapt.vocabulary import IDS
from jaxlean.errors import ConfigError, ModelError

# module -> leading dims, in, out; `narrow` has no room for the sum of many ranks
SHAPES = {"layers.query": ((), 9, 7), "layers.up": ((2,), 6, 11), "experts.down": ((2, 3), 5, 6), "narrow": ((), 8, 3)}


def adapter(seed, ranks, scales):
    """Random leaves as float32; a module whose rank is 0 is left out."""
    rng, leaves = np.random.default_rng(seed), {}
    for (module, (leading, dim_in, dim_out)), r, scale in zip(SHAPES.items(), ranks, scales, strict=True):
        if r:
            leaves[f"{module}.lora_a"] = rng.normal(size=(*leading, dim_in, r)).astype(np.float32)
            leaves[f"{module}.lora_b"] = rng.normal(size=(*leading, r, dim_out)).astype(np.float32)
            leaves[f"{module}.lora_scale"] = (scale * rng.uniform(0.5, 1, leading)).astype(np.float32)
    return tree.unflatten(leaves)


def dense(one, module):
    """float64 [.., in, out]: what an adapter adds; zeros where it has none."""
    leading, dim_in, dim_out = SHAPES[module]
    leaves = tree.flatten(one)
    if f"{module}.lora_a" not in leaves:
        return np.zeros((*leading, dim_in, dim_out))
    a, b, scale = (np.asarray(leaves[f"{module}.{name}"], np.float64) for name in ("lora_a", "lora_b", "lora_scale"))
    return scale[..., None, None] * (a @ b)


def mean_of(parties, weights, module):
    return sum(w * dense(one, module) for w, one in zip(weights, parties, strict=True)) / sum(weights)


def squared(x):
    return (x**2).sum(axis=(-2, -1))


ranks = st.lists(st.integers(0, 5), min_size=len(SHAPES), max_size=len(SHAPES)).filter(any)
scales = st.lists(st.floats(0.1, 30), min_size=len(SHAPES), max_size=len(SHAPES))
parties_of = st.lists(
    st.tuples(st.builds(adapter, st.integers(0, 2**32 - 1), ranks, scales), st.floats(0.01, 1e6)),
    min_size=1, max_size=4,
)  # fmt: skip


@given(parties_of)
def test_exact_is_the_mean_of_what_they_add(given):
    parties, weights = zip(*given, strict=True)
    found = average(parties, weights)
    for module in SHAPES:
        wanted = mean_of(parties, weights, module)
        # the factors are rounded to float32 once
        np.testing.assert_allclose(dense(found.adapter, module), wanted, atol=2e-6 * (abs(wanted).max() + 1e-30))
    assert found.lost < 1e-12
    for path, leaf in tree.flatten(found.adapter).items():
        assert leaf.dtype == np.float32, path


@given(parties_of, st.integers(1, 8))
def test_of_fewer_ranks_it_is_the_nearest_there_is(given, rank):
    parties, weights = zip(*given, strict=True)
    found = average(parties, weights, rank=rank)
    energy = lost = 0.0
    for module, (leading, dim_in, dim_out) in SHAPES.items():
        if not any(f"{module}.lora_a" in tree.flatten(one) for one in parties):
            continue
        wanted = mean_of(parties, weights, module)
        s = np.linalg.svd(wanted, compute_uv=False)
        off = squared(dense(found.adapter, module) - wanted)
        # Eckart and Young: no matrix of that rank is nearer than by the singular values that are left out
        np.testing.assert_allclose(off, (s[..., rank:] ** 2).sum(axis=-1), atol=1e-10 * squared(wanted).max())
        for index in np.ndindex(*leading):
            name = f"{module}[{', '.join(map(str, index))}]" if index else module
            assert found.matrices[name].energy == pytest.approx(squared(wanted)[index], rel=1e-9)
            assert found.matrices[name].lost == pytest.approx(off[index], abs=1e-10 * squared(wanted).max())
        assert tree.flatten(found.adapter)[f"{module}.lora_a"].shape[-1] <= min(rank, dim_in, dim_out)
        energy, lost = energy + squared(wanted).sum(), lost + off.sum()
    assert found.lost == pytest.approx(lost / energy, abs=1e-9)
    shares = [matrix.lost / matrix.energy for matrix in found.matrices.values()]
    assert found.worst[1] == max(shares)
    worst = found.matrices[found.worst[0]]
    assert worst.lost / worst.energy == max(shares)


@given(parties_of)
def test_plain_is_the_mean_of_each_matrix(given):
    parties, weights = zip(*given, strict=True)
    found = average(parties, weights, method="plain")
    shares = np.array(weights) / sum(weights)
    leaves = tree.flatten(found.adapter)
    for module, (leading, dim_in, dim_out) in SHAPES.items():
        own = [tree.flatten(one) for one in parties]
        r = max((one[f"{module}.lora_a"].shape[-1] for one in own if f"{module}.lora_a" in one), default=0)
        if not r:
            assert f"{module}.lora_a" not in leaves
            continue
        a, b = np.zeros((*leading, dim_in, r)), np.zeros((*leading, r, dim_out))
        scale, there = np.zeros(leading), 0.0
        for share, one in zip(shares, own, strict=True):
            if f"{module}.lora_a" in one:
                n = one[f"{module}.lora_a"].shape[-1]
                a[..., :n] += share * one[f"{module}.lora_a"]
                b[..., :n, :] += share * one[f"{module}.lora_b"]
                scale, there = scale + share * one[f"{module}.lora_scale"], there + share
        np.testing.assert_allclose(leaves[f"{module}.lora_a"], a, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(leaves[f"{module}.lora_b"], b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(leaves[f"{module}.lora_scale"], scale / there, rtol=1e-6)
        # and it says how far off that is
        product = (scale / there)[..., None, None] * (a @ b)
        off = squared(product - mean_of(parties, weights, module))
        said = [m.lost for name, m in found.matrices.items() if name.partition("[")[0] == module]
        np.testing.assert_allclose(said, off.ravel(), rtol=1e-6, atol=1e-9 * (squared(product).max() + off.max()))


@given(parties_of, st.randoms(use_true_random=False), st.floats(1e-3, 1e3), st.sampled_from(["exact", "plain"]))
def test_neither_the_order_nor_the_unit_of_the_weights_counts(given, random, unit, method):
    other = list(given)
    random.shuffle(other)
    parties, weights = zip(*given, strict=True)
    first = average(parties, weights, method=method)
    moved, moved_weights = zip(*other, strict=True)
    second = average(moved, [unit * w for w in moved_weights], method=method)
    for module in SHAPES:
        one, two = dense(first.adapter, module), dense(second.adapter, module)
        np.testing.assert_allclose(one, two, atol=5e-6 * (abs(one).max() + 1e-30))


@given(st.builds(adapter, st.integers(0, 2**32 - 1), ranks, scales), st.integers(2, 4))
def test_the_mean_of_one_and_the_same_is_that(one, times):
    for method in ("exact", "plain"):
        found = average([one] * times, [1.0] * times, method=method)
        assert found.rank <= max(x.shape[-1] for p, x in tree.flatten(one).items() if p.endswith("lora_a"))
        assert found.lost < 1e-12
        for module in SHAPES:
            wanted = dense(one, module)
            np.testing.assert_allclose(dense(found.adapter, module), wanted, atol=2e-6 * (abs(wanted).max() + 1e-30))
        assert [party.cosine for party in found.parties] == pytest.approx([1.0] * times)


def test_what_each_party_adds_is_measured():
    parties, weights = [adapter(1, (2, 1, 3, 2), (2, 2, 2, 2)), adapter(2, (4, 0, 2, 3), (1, 5, 3, 2))], (3.0, 1.0)
    flat = [np.concatenate([dense(one, m).ravel() for m in SHAPES]) for one in parties]
    mean = (3 * flat[0] + flat[1]) / 4
    for method in ("exact", "plain"):
        found = average(parties, weights, method=method).parties
        for own, x in zip(found, flat, strict=True):
            assert own.norm == pytest.approx(np.linalg.norm(x))
            assert own.cosine == pytest.approx(x @ mean / np.linalg.norm(x) / np.linalg.norm(mean))


def same_scale(seed, r, scale=2.0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(9, r)), rng.normal(size=(r, 7))
    return {"m": {"lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b), "lora_scale": jnp.float32(scale)}}


def test_the_rank_is_the_least_that_is_enough():
    assert average([same_scale(0, 2), same_scale(1, 3)], [1, 1]).rank == 5
    assert average([same_scale(0, 5), same_scale(1, 5)], [1, 1]).rank == 7  # the matrix is 9 x 7
    one, other = same_scale(0, 2), same_scale(1, 2)
    frozen_a = {"m": other["m"] | {"lora_a": one["m"]["lora_a"]}}
    assert average([one, frozen_a], [1, 1]).rank == 2
    fresh = {"m": other["m"] | {"lora_b": jnp.zeros((2, 7))}}
    assert average([one, fresh], [1, 1]).rank == 2
    nothing = average([fresh, fresh], [1, 1])
    assert (nothing.rank, nothing.lost) == (1, 0.0)
    assert [party.cosine for party in nothing.parties] == [0.0, 0.0]
    assert average([same_scale(0, 2), same_scale(1, 3)], [1, 1], rank=100).rank == 5


def test_matrices_share_a_rank_where_they_have_room():
    leaves = tree.flatten(
        average([adapter(1, (2, 1, 3, 2), (1, 1, 1, 1)), adapter(2, (4, 0, 2, 3), (1,) * 4)], [1, 1]).adapter
    )
    assert {m: leaves[f"{m}.lora_a"].shape[-1] for m in SHAPES} == {
        "layers.query": 6, "layers.up": 6, "experts.down": 5, "narrow": 3,
    }  # fmt: skip


def test_a_scale_that_all_have_stays():
    kept = average([same_scale(0, 2), same_scale(1, 3)], [1, 1]).adapter["m"]
    assert float(kept["lora_scale"]) == 2.0
    # of equal lengths: neither factor learns faster than the other because of the mean
    assert np.linalg.norm(kept["lora_a"]) == pytest.approx(np.linalg.norm(kept["lora_b"]), rel=1e-6)
    assert float(average([same_scale(0, 2), same_scale(1, 3, 4.0)], [1, 1]).adapter["m"]["lora_scale"]) == 1.0
    # of a stack, a layer without an adapter says nothing of it, though it has a place for it
    whole, half = (
        {"m": {"lora_a": np.ones((2, 3, 1)), "lora_b": np.ones((2, 1, 3)), "lora_scale": np.array([2.0, 2.0])}}
        for _ in range(2)
    )
    half["m"]["lora_a"][1], half["m"]["lora_scale"][1] = 0, 1
    for method in ("exact", "plain"):
        np.testing.assert_array_equal(average([whole, half], [1, 1], method=method).adapter["m"]["lora_scale"], [2, 2])


def test_what_trained_whole_is_averaged_in_both_ways():
    one, other = same_scale(0, 2), same_scale(1, 2)
    one["classifier"], other["classifier"] = {"kernel": np.full((2, 3), 1.0)}, {"kernel": np.full((2, 3), 5.0)}
    one["new_tokens"] = other["new_tokens"] = {"ids": np.array([7, 9], np.int32), "embed": np.ones((2, 4))}
    for method in ("exact", "plain"):
        leaves = tree.flatten(average([one, other], [3, 1], method=method).adapter)
        np.testing.assert_array_equal(leaves["classifier.kernel"], np.full((2, 3), 2.0, np.float32))
        np.testing.assert_array_equal(leaves[IDS], [7, 9])
        assert leaves[IDS].dtype == np.int32
    alone = average([{"new_tokens": one["new_tokens"]}] * 2, [1, 1])
    assert (alone.rank, alone.lost, alone.worst, alone.parties) == (0, 0.0, None, [])
    other["new_tokens"] = {"ids": np.array([7, 8], np.int32), "embed": np.ones((2, 4))}
    with pytest.raises(ModelError, match="rows of different tokens have no mean"):
        average([one, other], [1, 1])


def with_magnitude(one, value):
    return {"m": one["m"] | {"lora_magnitude": np.full(7, value)}}


def test_magnitudes_have_a_plain_mean_only():
    one, other = with_magnitude(same_scale(0, 2), 1.0), with_magnitude(same_scale(1, 2), 2.0)
    found = average([one, other], [1, 3], method="plain")
    np.testing.assert_array_equal(found.adapter["m"]["lora_magnitude"], np.full(7, 1.75, np.float32))
    assert (found.matrices, found.parties) == ({}, [])
    with pytest.raises(ModelError) as caught:
        average([same_scale(0, 2), other], [1, 3], names=["north", "south"])
    for words in ("(DoRA) have no exact mean", "where:  south", "fix:    --method plain"):
        assert words in str(caught.value)
    with pytest.raises(ModelError) as caught:
        average([same_scale(0, 2), other], [1, 3], method="plain", names=["north", "south"])
    for words in ("where all have the same modules: m is missing", "where:  north"):
        assert words in str(caught.value)


def broken(**leaves):
    return {"m": same_scale(3, 2)["m"] | leaves}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            broken(lora_b=np.ones((2, 8))),
            ("adapters over different bases: m", "south", "(9, 8)", "(9, 7), as in north"),
        ),
        (broken(lora_b=np.ones((3, 7))), ("whose parts do not fit each other: m", "south", "lora_b (3, 7)")),
        (broken(lora_scale=np.ones(2)), ("whose parts do not fit each other: m", "lora_scale (2,)")),
        (broken(lora_a=np.full((9, 2), np.nan)), ("what is not a number", "south: m.lora_a")),
        ({"m": {"lora_b": np.ones((2, 7))}}, ("an adapter without lora_a, lora_scale: m", "south")),
        (broken() | {"head": {"kernel": np.ones(3)}}, ("one lacks it: head.kernel", "north", "as in south")),
    ],
)
def test_adapters_that_do_not_fit_are_named(other, words):
    with pytest.raises(ModelError) as caught:
        average([same_scale(0, 2), other], [1, 1], names=["north", "south"])
    for word in words:
        assert word in str(caught.value)


def test_a_head_of_another_shape_is_named():
    heads = [{"head": {"kernel": np.ones(n)}} for n in (3, 4)]
    with pytest.raises(ModelError, match=r"has another shape: head.kernel\n  where:  adapter 2\n  got:    \(4,\)"):
        average(heads, [1, 1])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_are_positive_numbers_one_each(weights):
    with pytest.raises(ConfigError, match="one weight for each adapter" if len(weights) == 1 else "a positive number"):
        average([same_scale(0, 2), same_scale(1, 2)], weights)


def test_large_weights_do_not_overflow():
    one, other = same_scale(0, 2), same_scale(1, 2)
    found, wanted = average([one, other], [1e308, 1e308]), average([one, other], [1, 1])
    np.testing.assert_array_equal(found.adapter["m"]["lora_a"], wanted.adapter["m"]["lora_a"])


def test_a_rank_is_for_the_exact_mean():
    with pytest.raises(ConfigError, match=r"(?s)a rank is for the exact mean.*rank 2, method plain"):
        average([same_scale(0, 2)], [1], method="plain", rank=2)
    with pytest.raises(ConfigError, match="a rank is a positive number"):
        average([same_scale(0, 2)], [1], rank=0)
