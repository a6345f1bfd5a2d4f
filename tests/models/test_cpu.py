"""What is done for XLA's CPU back end: bits and back, names that save bits, products that are laid out first."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.models import cpu
from jaxlean.models.build import abstract
from jaxlean.models.cpu import enough_rows, own_rows
from jaxlean.models.decoder import DecoderConfig


@pytest.fixture
def elsewhere(monkeypatch):
    """As on a GPU or TPU."""
    monkeypatch.setattr(cpu, "on_cpu", lambda: False)


def array(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# ---- bits


def test_all_16_bits_come_back():
    every = np.arange(2**16, dtype=np.uint16)  # with every NaN, infinity and zero there is
    held = cpu.to_bits(jnp.asarray(every).view(jnp.bfloat16))
    assert held.dtype == jnp.uint16
    np.testing.assert_array_equal(held, every)
    back = cpu.from_bits(held)
    assert back.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(back).view(np.uint16), every)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.int8, jnp.int32, jnp.uint8, jnp.bool_])
def test_other_numbers_stay_as_they_are(dtype):
    x = jnp.ones((3,), dtype)
    assert cpu.to_bits(x) is cpu.from_bits(x) is cpu.frozen_bits(x) is x


def test_elsewhere_nothing_is_moved_as_bits(elsewhere, equations):
    x = array(0, 4, 6, dtype=jnp.bfloat16)
    assert cpu.to_bits(x) is cpu.frozen_bits(x) is x
    params = {"layers": {"kernel": x}}
    assert cpu.hold(params) is params

    def everything(x):
        return cpu.keep(x, "a"), cpu.transpose(x), cpu.concatenate([x, x], 0), cpu.heads_first(x[None, None])

    assert not [e for e in equations(everything, x) if str(e.primitive) == "bitcast_convert_type"]
    np.testing.assert_array_equal(cpu.transpose(x), x.T)


def test_a_parameter_as_bits_says_that_it_has_no_gradient():
    np.testing.assert_array_equal(
        cpu.frozen_bits(array(1, 5, dtype=jnp.bfloat16)), cpu.to_bits(array(1, 5, dtype=jnp.bfloat16))
    )
    np.testing.assert_array_equal(jax.grad(lambda x: cpu.frozen_bits(x).sum())(array(1, 5)), 1)
    with pytest.raises(TypeError, match="float32"):
        jax.grad(lambda x: cpu.from_bits(cpu.frozen_bits(x)).astype(jnp.float32).sum())(array(1, 5, dtype=jnp.bfloat16))


# ---- names


@pytest.mark.parametrize("function", [cpu.keep, cpu.named])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_name_changes_nothing(names, function, dtype):
    x = array(2, 3, 4, dtype=dtype)
    got = function(x, "here")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x)
    assert names(lambda x: function(x, "here"), x) == ["here"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_passes_through_keep(dtype):
    x, weight = array(3, 5, dtype=dtype), array(4, 5, dtype=dtype)
    grad = jax.grad(lambda x: (cpu.keep(x * x, "square") * weight).astype(jnp.float32).sum())
    for found in (grad(x), jax.jit(grad)(x)):
        assert found.dtype == dtype
        np.testing.assert_allclose(*(np.asarray(g.astype(jnp.float32)) for g in (found, 2 * x * weight)), rtol=0.01)


@pytest.mark.parametrize(("dtype", "held"), [(jnp.float32, "f32[2,3]"), (jnp.bfloat16, "u16[2,3]")])
def test_a_policy_saves_what_is_named_as_its_bits(saved, products, dtype, held):
    x, kernel = array(5, 2, 4, dtype=dtype), array(6, 4, 3, dtype=dtype)

    def layer(policy, x, kernel):
        return jax.checkpoint(lambda x, k: jnp.sin(cpu.keep(x @ k, "product")).sum(), policy=policy)(x, kernel)

    policies = jax.checkpoint_policies
    with_it = partial(layer, policies.save_only_these_names("product"))
    without = partial(layer, policies.save_only_these_names("another"))
    assert saved(with_it, x, kernel) == [held]
    assert saved(without, x, kernel) == []
    # forward, the gradients of both, and without what is named the forward product again
    gradients = [products(jax.grad(f, argnums=(0, 1)), x, kernel) for f in (with_it, without)]
    assert gradients == [3, 4]


# ---- layout


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(4, 6), (5, 3), (1, 7), (2, 1), (3, 4, 6), (2, 3, 5, 2)])
def test_transpose_swaps_the_last_two_dims(shape, dtype):
    x = array(7, *shape, dtype=dtype)
    got = jax.jit(cpu.transpose)(x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x.swapaxes(-1, -2))


def contracted(product, *args):
    """Which dim of the left side, [64, 32] before it is turned, the compiled product sums over."""
    compiled = jax.jit(product).lower(*args).compile().as_text()
    (dims,) = {part.split("}")[0] for part in compiled.split("lhs_contracting_dims={")[1:]}
    return int(dims)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_with_it_is_compiled_with_the_left_side_as_it_stands(dtype):
    """A plain transposition is folded into the product, which then contracts over the first dim of both."""
    x, y = array(8, 64, 32, dtype=dtype), array(9, 64, 16, dtype=dtype)

    def product(turn, x, y):
        return jnp.dot(turn(x), y, preferred_element_type=jnp.float32)

    assert contracted(partial(product, jnp.transpose), x, y) == 0
    assert contracted(partial(product, cpu.transpose), x, y) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("length", [1, 4, 5])
def test_heads_first(dtype, length):
    x = array(10, 2, length, 3, 6, dtype=dtype)
    got = jax.jit(cpu.heads_first)(x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x.swapaxes(1, 2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_concatenate(equations, dtype, axis):
    parts = [array(seed, 3, 2, dtype=dtype) for seed in range(3)]
    got = cpu.concatenate(parts, axis)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, jnp.concatenate(parts, axis))
    assert cpu.concatenate(parts[:1], axis) is parts[0]
    found = equations(lambda parts: cpu.concatenate(parts, axis), parts)
    (moved,) = (e for e in found if str(e.primitive) == "concatenate")
    assert str(moved.outvars[0].aval.dtype) == {"float32": "float32", "bfloat16": "uint16"}[jnp.dtype(dtype).name]


# ---- a decoder's parameters

SHAPE = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)
TOKENS = jnp.asarray([[1, 5, 9, 2, 2, 7]], jnp.int32)


@pytest.fixture(scope="module")
def params():
    def draw(path, leaf):
        return array(len(path), *leaf.shape, dtype=jnp.float32 if path.endswith(".scale") else jnp.bfloat16)

    return tree.map_with_path(draw, abstract(SHAPE)[1])


def test_held_are_the_bfloat16_stacks_alone(params):
    held, given = tree.flatten(cpu.hold(params)), tree.flatten(params)
    for path, leaf in held.items():
        assert leaf.shape == given[path].shape
        narrow = path.startswith("layers.") and path.endswith(".kernel")
        assert leaf.dtype == (jnp.uint16 if narrow else given[path].dtype), path
    assert sum(leaf.dtype == jnp.uint16 for leaf in held.values()) == 7
    assert {str(held[p].dtype) for p in ("embed.embedding", "head.kernel")} == {"bfloat16"}
    assert held["norm.scale"] is given["norm.scale"]  # what stays as it is is not copied


def test_what_is_released_is_what_was_held(params):
    back = tree.flatten(cpu.release(cpu.hold(params)))
    for path, leaf in tree.flatten(params).items():
        assert back[path].dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(back[path]), np.asarray(leaf), err_msg=path)


def test_devices_that_the_host_is_split_into_read_one_memory(params):
    mesh = jax.make_mesh((8,), ("data",))
    everywhere, split = (jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in ((), (None, "data")))
    kernel = params["layers"]["mlp"]["up"]["kernel"]

    def places(x):
        return {part.data.unsafe_buffer_pointer() for part in x.addressable_shards}

    given = {"layers": {"all": jax.device_put(kernel, everywhere), "part": jax.device_put(kernel, split)}}
    given["norm"] = jax.device_put(params["norm"]["scale"], everywhere)
    assert [len(places(x)) for x in jax.tree.leaves(given)] == [8, 8, 8]
    held = cpu.hold(given)
    assert {name: len(places(x)) for name, x in held["layers"].items()} == {"all": 1, "part": 8}
    assert len(places(held["norm"])) == 1
    back = cpu.release(held)
    for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(given), strict=True):
        assert got.dtype == want.dtype
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_a_decoder_computes_the_same_from_what_is_held(params):
    graph, _ = abstract(SHAPE, dtype=jnp.bfloat16)
    forward = jax.jit(lambda params: nnx.merge(graph, params)(TOKENS))
    want = forward(params)
    np.testing.assert_array_equal(forward(cpu.hold(params)), want)
    np.testing.assert_array_equal(forward(cpu.release(cpu.hold(params))), want)


@pytest.mark.parametrize("leading", [(1, 1), (3,), (), (20,)])
@pytest.mark.parametrize(("dtype", "enough"), [("bfloat16", 16), ("int8", 4), ("float32", 0)])
def test_few_rows_become_enough_of_them_and_own_ones_again(leading, dtype, enough):
    kernel = jax.ShapeDtypeStruct((1024, 1024), dtype)
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (*leading, 1024)), dtype)
    more = enough_rows(x, kernel)
    few = math.prod(leading) < enough
    assert more.shape == ((enough, 1024) if few else x.shape)
    assert more.dtype == dtype
    np.testing.assert_array_equal(own_rows(more, x).astype(jnp.float32), x.astype(jnp.float32))
    # in bfloat16 few rows are slow with a large matrix only
    assert enough_rows(x, jax.ShapeDtypeStruct((1024, 8), dtype)).shape == (x if dtype != "int8" else more).shape
