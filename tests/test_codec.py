"""int8 and NF4 against float64 numpy written as loops, against bitsandbytes' published tables, and by their bounds."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxlean import codec
from jaxlean.errors import ModelError

FORMS = ["int8", "nf4"]
# bitsandbytes, csrc: dQuantizeNF4. A value above the i-th has a code above i.
BORDERS = (
    *(-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984),
    *(-0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668),
    *(0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011),
)
encode = jax.jit(codec.encode, static_argnums=1, static_argnames="group_size")
decode = jax.jit(codec.decode, static_argnums=1)


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"):
        yield


def normal(*shape, seed=0, std=0.02):
    return jnp.asarray(std * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def matrices():
    """Matrices with zeros, outliers and columns of nothing; of few shapes, since each compiles anew."""
    sizes = st.sampled_from([(2, 1), (62, 3), (64, 2), (150, 5)])
    numbers = st.one_of(st.just(0.0), st.floats(-1, 1, width=32), st.floats(-1e4, 1e4, width=32)).map(
        lambda x: 0.0 if abs(x) < 1e-6 else x
    )
    return sizes.flatmap(lambda size: arrays(np.float32, size, elements=numbers, fill=st.just(0.0)))


# ---- the tables


def test_the_borders_between_levels_are_those_of_bitsandbytes():
    np.testing.assert_allclose(codec._between(np.asarray(codec.NF4, np.float32)), BORDERS, rtol=0, atol=3e-8)
    assert len(codec.NF4) == 16
    assert sorted(codec.NF4) == list(codec.NF4)


def test_levels_are_the_quantiles_of_the_paper():
    """QLoRA, section 3, and bitsandbytes' create_normal_map: quantiles of a normal, an exact zero, scaled to +-1."""
    from statistics import NormalDist

    normal, offset = NormalDist().inv_cdf, 0.9677083
    above = [normal(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-normal(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.sort([*above, 0.0, *below])
    np.testing.assert_allclose(levels / levels.max(), codec.NF4, atol=2e-7)


def test_the_table_of_the_absmaxes():
    table = codec.dynamic_table()
    assert table.shape == (256,)
    assert table.dtype == np.float32
    assert (np.diff(table) > 0).all()
    assert {0.0, 1.0} < set(table.tolist())
    # what bitsandbytes prints for create_dynamic_map(): its ends, and the numbers around zero
    np.testing.assert_allclose(table[[0, 1, -3, -2]], [-0.99296875, -0.97890625, 0.97890625, 0.99296875], rtol=1e-6)
    np.testing.assert_allclose(table[[126, 127, 128]], [-5.5e-7, 0.0, 5.5e-7], rtol=1e-6)
    assert np.diff(table).max() < 0.0141
    np.testing.assert_array_equal(np.sort(-table)[1:], table[:-1])  # symmetric, but for 1


def test_codes_and_packing_are_those_of_bitsandbytes(golden):
    theirs = np.load(golden / "nf4.npz")
    np.testing.assert_allclose(codec.dynamic_table(), theirs["table"], rtol=0, atol=6e-8)
    leaves = encode(jnp.asarray(theirs["weight"].T), "nf4")
    np.testing.assert_array_equal(np.asarray(leaves["kernel_nf4"]).T, theirs["codes"])
    np.testing.assert_allclose(leaves["kernel_absmax_offset"], theirs["offset"], rtol=1e-6)
    scale = np.abs(theirs["absmax"] - theirs["offset"]).max(axis=0)  # of our groups
    assert (np.abs(codec.decode_absmax(leaves).T - theirs["absmax"]) < 0.0071 * scale).all()
    assert np.abs(decode(leaves, jnp.float32).T - theirs["decoded"]).max() < 0.0071 * scale.max()


# ---- against loops in float64


def int8_by_hand(kernel):
    codes, scales = np.zeros(kernel.shape), np.zeros(kernel.shape[1])
    for column in range(kernel.shape[1]):
        scales[column] = max(abs(float(x)) for x in kernel[:, column]) / 127
        for row in range(kernel.shape[0]):
            codes[row, column] = 0 if scales[column] == 0 else float(kernel[row, column]) / scales[column]
    return codes, scales


def blocks_by_hand(kernel):
    """(row, column) of a block -> its values in float64."""
    return {
        (block, column): kernel[block * 64 : (block + 1) * 64, column].astype(np.float64)
        for block in range(-(-kernel.shape[0] // 64))
        for column in range(kernel.shape[1])
    }


@settings(max_examples=30)
@given(matrices())
def test_int8_is_the_nearest_of_the_255_numbers(kernel):
    leaves = encode(jnp.asarray(kernel), "int8")
    exact, scales = int8_by_hand(kernel)
    codes = np.asarray(leaves["kernel_int8"], np.float64)
    assert np.abs(codes).max() <= 127
    assert np.abs(codes - exact).max() <= 0.5 + 2e-5
    np.testing.assert_allclose(leaves["kernel_scale"], scales, rtol=1e-6)
    error = np.abs(np.asarray(decode(leaves, jnp.float32), np.float64) - kernel)
    assert (error <= scales * (0.5 + 1e-4)).all()


@settings(max_examples=30)
@given(matrices())
def test_nf4_is_the_nearest_level_of_each_block(kernel):
    leaves = encode(jnp.asarray(kernel), "nf4")
    packed = np.asarray(leaves["kernel_nf4"])
    codes = np.zeros(kernel.shape, int)
    for row in range(packed.shape[0]):  # by hand: the first of a pair is in the high half
        codes[2 * row], codes[2 * row + 1] = packed[row] // 16, packed[row] % 16
    absmaxes = {place: np.abs(values).max() for place, values in blocks_by_hand(kernel).items()}
    levels, offset = np.asarray(codec.NF4), np.mean(list(absmaxes.values()))
    np.testing.assert_allclose(leaves["kernel_absmax_offset"], offset, rtol=1e-6)
    whole = np.asarray(decode(leaves, jnp.float32), np.float64)
    for (block, column), values in blocks_by_hand(kernel).items():
        absmax, rows = absmaxes[block, column], slice(block * 64, block * 64 + len(values))
        apart = [absmaxes[block, other] - offset for other in range(kernel.shape[1])]
        scale = max(map(abs, apart))  # fewer than 256 columns: one group
        np.testing.assert_allclose(leaves["kernel_absmax_scale"][block], [scale], rtol=1e-5, atol=1e-5 * offset)
        distance = np.abs(values[:, None] - levels * absmax)
        chosen = distance[np.arange(len(values)), codes[rows, column]]
        assert (chosen <= distance.min(axis=1) + 1e-6 * absmax).all()
        # half of the widest gap between levels, and of that between the absmaxes' numbers
        bound = 0.152 * absmax + 0.0071 * scale + 1e-5 * offset
        assert np.abs(whole[rows, column] - values).max() <= bound


@pytest.mark.parametrize("shape", [(192, 600), (100, 257), (64, 256), (2, 1)])
def test_decoding_nf4_by_hand(shape):
    leaves = {name: np.asarray(x) for name, x in encode(normal(*shape), "nf4").items()}
    table, want = codec.dynamic_table().astype(np.float64), np.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            byte = int(leaves["kernel_nf4"][row // 2, column])
            eight = leaves["kernel_absmax"][row // 64, column]
            scale = leaves["kernel_absmax_scale"][row // 64, column // 256]
            absmax = table[eight] * scale + leaves["kernel_absmax_offset"]
            want[row, column] = codec.NF4[byte % 16 if row % 2 else byte // 16] * absmax
    np.testing.assert_allclose(decode(leaves, jnp.float32), want, rtol=0, atol=1e-7 * np.abs(want).max())


# ---- what holds for both


@pytest.mark.parametrize(("form", "error"), [("int8", 0.0075), ("nf4", 0.093)])
def test_the_error_on_normal_weights(form, error):
    kernel = normal(512, 300)
    got = decode(encode(kernel, form), jnp.float32)
    assert np.linalg.norm(got - kernel) / np.linalg.norm(kernel) == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(64, 8), (3, 130, 300), (2, 3, 66, 5)])
def test_shapes_and_stacks(form, shape):
    kernel = normal(*shape)
    leaves = encode(kernel, form)
    assert set(leaves) == set(codec.LEAVES[f"kernel_{form}"])
    assert codec.shape(leaves) == shape
    declared = codec.shapes(shape, form)
    assert {name: (x.shape, x.dtype) for name, x in leaves.items()} == {
        name: (x.shape, x.dtype) for name, x in declared.items()
    }
    whole = decode(leaves, jnp.float32)
    assert whole.shape == shape
    for place in np.ndindex(*shape[:-2]):  # a stack is its layers, each on its own
        alone = decode(encode(kernel[place], form), jnp.float32)
        np.testing.assert_allclose(whole[place], alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoded_numbers_are_rounded_once(form, dtype):
    leaves = encode(normal(128, 12).astype(dtype), form)
    got = decode(leaves, jnp.dtype(dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, decode(leaves, jnp.float32).astype(dtype))


def test_bytes_of_a_parameter():
    size = 1024 * 512

    def bits(form):
        return 8 * sum(x.size * x.dtype.itemsize for x in codec.shapes((1024, 512), form).values()) / size

    assert bits("nf4") == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert bits("nf4") == pytest.approx(4.127, abs=1e-3)
    assert bits("int8") == pytest.approx(8, abs=0.04)
    arrays_of = encode(normal(1024, 512), "nf4")
    assert sum(x.nbytes for x in arrays_of.values()) * 8 / size == pytest.approx(4.127, abs=1e-3)


@settings(max_examples=30)
@given(matrices())
def test_decoded_values_encode_to_the_same_codes(kernel):
    first = encode(jnp.asarray(kernel), "int8")
    again = encode(decode(first, jnp.float32), "int8")
    np.testing.assert_array_equal(first["kernel_int8"], again["kernel_int8"])
    np.testing.assert_allclose(first["kernel_scale"], again["kernel_scale"], rtol=1e-6)
    first = encode(jnp.asarray(kernel), "nf4")
    once = decode(first, jnp.float32)
    # blocks whose absmax came out as zero, or next to it, have nothing left to be the same
    absmax = np.asarray(codec.decode_absmax(first))
    sound = np.repeat(absmax > 1e-5 * absmax.max(), 32, axis=0)[: kernel.shape[0] // 2]
    again = encode(once, "nf4")
    np.testing.assert_array_equal(first["kernel_nf4"][sound], again["kernel_nf4"][sound])


@pytest.mark.parametrize("form", FORMS)
def test_zeros_stay_zeros(form):
    kernel = normal(130, 6).at[:, 2].set(0.0).at[:64, 4].set(0.0)
    got = np.asarray(decode(encode(kernel, form), jnp.float32))
    assert not got[:, 2].any()
    assert not got[:64, 4].any()
    assert not np.asarray(decode(encode(jnp.zeros((4, 3)), form), jnp.float32)).any()


def test_a_block_far_below_the_mean_does_not_change_its_signs():
    kernel = np.ones((64, 256), np.float32)
    kernel[:, 0] = 1e-6
    got = np.asarray(decode(encode(jnp.asarray(kernel), "nf4"), jnp.float32))
    assert (got >= 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_not_hidden(form, bad):
    got = decode(encode(normal(64, 4).at[5, 1].set(bad), form), jnp.float32)
    assert not np.isfinite(got[:, 1]).any()


def test_an_odd_number_of_inputs_has_no_nf4():
    with pytest.raises(ModelError, match="odd number"):
        codec.encode(jnp.ones((7, 4)), "nf4")
    assert codec.encode(jnp.ones((7, 4)), "int8")["kernel_int8"].shape == (7, 4)


# ---- in a tree


def test_kernels_of_a_tree_in_any_form():
    leaves = {
        "a.kernel": normal(4, 2), "a.bias": normal(2), "norm.scale": normal(2),
        **{f"b.{name}": x for name, x in encode(normal(3, 4, 2), "int8").items()},
        **{f"c.{name}": x for name, x in encode(normal(3, 4, 2), "nf4").items()},
    }  # fmt: skip
    found = codec.kernels(leaves)
    assert {module: tuple(held) for module, held in found.items()} == {
        "a": codec.LEAVES["kernel"],
        "b": codec.LEAVES["kernel_int8"],
        "c": codec.LEAVES["kernel_nf4"],
    }
    assert sum(codec.num_params(path, x) for path, x in leaves.items()) == 8 + 2 + 2 + 24 + 24
    assert codec.is_quantized(leaves)
    assert not codec.is_quantized(["a.kernel", "a.scale"])


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("float8_e4m3fn", 448), ("float8_e5m2", 57344)])
@pytest.mark.parametrize("axis", [0, 1])
def test_narrow_uses_the_whole_range_of_a_dtype(dtype, largest, axis):
    x = normal(5, 40).at[:, 3].set(0.0).at[2].set(0.0)
    values, scale = codec.narrow(x, jnp.dtype(dtype), axis=axis)
    assert values.dtype == dtype
    assert scale.shape == (x.shape[1 - axis],)
    wide = np.asarray(values.astype(jnp.float32))
    assert np.abs(wide).max() == largest
    steps = {"int8": 1 / 254, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}[dtype]
    error = np.abs(wide * np.expand_dims(np.asarray(scale), axis) - x)
    assert (error <= steps * np.abs(x).max(axis=axis, keepdims=True) * 1.01).all()
    assert not np.asarray(scale)[3 if axis == 0 else 2].any()


# ---- int4 and int8 in groups


def groups_by_hand(kernel, bits, size):
    """The nearest of 2^bits numbers, whose step is the group's absmax over half of 2^bits - 1; float64."""
    rows, columns = kernel.shape
    grouped = np.asarray(kernel, np.float64).reshape(rows // size, size, columns)
    scale = np.abs(grouped).max(axis=1) / ((2**bits - 1) / 2)
    steps = grouped / np.where(scale == 0, 1, scale)[:, None]
    values = np.clip(np.round(steps), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # each group's largest lies between two numbers, and is as near to one as to the other
    return values.reshape(rows, columns), scale, (np.abs(np.abs(steps) % 1 - 0.5) < 1e-4).reshape(rows, columns)


@pytest.mark.parametrize(("form", "bits"), [("int4", 4), ("int8_grouped", 8)])
@pytest.mark.parametrize("size", [16, 64, None])
def test_groups_are_rounded_to_the_nearest_number(form, bits, size):
    kernel = normal(64, 6).at[:, 2].set(0.0)
    leaves = encode(kernel, form, group_size=size)
    values, scale, between = groups_by_hand(kernel, bits, size or 64)
    got, scales = codec.unpack_groups(leaves)
    np.testing.assert_array_equal(np.asarray(got)[~between], values[~between])
    assert np.abs(np.asarray(got) - values).max() <= 1
    assert between.sum() <= scale.size * 2
    np.testing.assert_allclose(scales, scale, rtol=1e-6)
    wide = np.asarray(got, np.float64) * np.repeat(np.asarray(scales), size or 64, axis=0)
    np.testing.assert_allclose(decode(leaves, jnp.float32), wide, rtol=1e-6)
    assert set(leaves) == set(codec.LEAVES[f"kernel_{form}"])
    assert codec.shape(leaves) == (64, 6)
    declared = codec.wanted((64, 6), leaves)
    assert {name: (x.shape, x.dtype) for name, x in leaves.items()} == {
        name: (x.shape, x.dtype) for name, x in declared.items()
    }


@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 3), (8, 1), (6, 5)]), st.booleans())
def test_what_is_packed_is_unpacked(seed, shape, stacked):
    shape = (2, *shape) if stacked else shape
    values = np.random.default_rng(seed).integers(-8, 8, shape, np.int8)
    scales = jnp.ones((*shape[:-2], 1, shape[-1]), jnp.float32)
    leaves = codec.pack_groups(jnp.asarray(values), scales, 4)
    assert leaves["kernel_int4"].dtype == jnp.uint8
    assert leaves["kernel_int4"].size * 2 == values.size
    np.testing.assert_array_equal(codec.unpack_groups(leaves)[0], values)


def test_bits_of_a_parameter_in_groups():
    found = codec.shapes((1024, 512), "int4", group_size=128)
    assert sum(x.size * x.dtype.itemsize for x in found.values()) * 8 / (1024 * 512) == 4 + 32 / 128
    assert codec.num_params("mlp.up.kernel_int4", found["kernel_int4"]) == 1024 * 512
    assert codec.num_params("mlp.up.kernel_scales", found["kernel_scales"]) == 0
    assert codec.is_quantized(["mlp.up.kernel_int4"])


def test_groups_must_divide_a_column():
    with pytest.raises(ModelError, match="a group size that does not divide a matrix' inputs") as caught:
        encode(normal(576, 4), "int4", group_size=128)
    assert "576 inputs in groups of 128" in str(caught.value)
    assert "64" in str(caught.value)
    with pytest.raises(ModelError, match="odd number"):
        encode(normal(7, 4), "int4")
