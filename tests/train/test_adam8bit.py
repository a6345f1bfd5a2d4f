"""8-bit Adam: the published codebook, the error of quantization, Adam in float64 beside it, memory, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxlean import tree
from jaxlean.config import MeshSection
from jaxlean.train import adam8bit as module
from jaxlean.train.adam8bit import Quantized, codebook, dequantize, quantize, scale_by_adam_8bit
from jaxlean.xla.mesh import make_mesh

# A value of each decade of bitsandbytes 0.50.2, `functional.create_dynamic_map`: index -> value
PUBLISHED = {
    True: {0: -0.99296874, 63: -0.10703125, 64: -0.09859375, 126: -5.5e-7, 127: 0.0, 128: 5.5e-7, 129: 3.25e-6,
           130: 7.75e-6, 191: 0.10703125, 254: 0.99296874, 255: 1.0},
    False: {0: 0.0, 1: 3.25e-7, 2: 7.75e-7, 3: 2.125e-6, 126: 0.09929688, 127: 0.10351562, 254: 0.9964844, 255: 1.0},
}  # fmt: skip


@pytest.mark.parametrize("signed", [True, False])
def test_the_codebook_is_the_published_one(signed):
    values = codebook(signed)
    assert values.shape == (256,)
    assert values.dtype == np.float32
    assert (np.diff(values) > 0).all()
    for index, value in PUBLISHED[signed].items():
        np.testing.assert_allclose(values[index], value, rtol=1e-6)
    # and all of it, from the paper's words: a zero bits prefix is a decade, the bits after it are a fraction
    wanted = {0.0, 1.0}
    for zeros in range(7):
        edges = np.linspace(0.1, 1, 2 ** ((6 if signed else 7) - zeros) + 1)
        middles = (edges[1:] + edges[:-1]) / 2 / 10**zeros
        wanted |= {*middles, *(-middles if signed else [])}
    np.testing.assert_allclose(values, sorted(wanted), rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_is_that_of_its_own_value_and_arithmetic_equals_the_table(signed):
    codes = jnp.arange(256, dtype=jnp.uint8)[None]
    largest = jnp.ones((1, 1))
    values = dequantize(Quantized(codes, largest), signed=signed)
    np.testing.assert_allclose(values[0], codebook(signed), rtol=1e-6)
    again = quantize(values, signed=signed)  # its largest is 1.0 itself
    np.testing.assert_array_equal(again.codes, codes)


@pytest.fixture(scope="module")
def published(golden):
    """What bitsandbytes makes of the same numbers (tests/golden/make_adam8bit.py)."""
    return np.load(golden / "adam8bit.npz")


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_bitsandbytes(published, signed):
    name, x = ("signed", published["numbers"]) if signed else ("unsigned", abs(published["numbers"]))
    np.testing.assert_allclose(codebook(signed), published[f"{name}_table"], atol=1e-7)
    found = quantize(jnp.asarray(x), signed=signed)
    wanted = published[f"{name}_codes"].astype(int)
    if not signed:  # what it makes zero
        assert (wanted == 0).sum() > 50
        wanted[(wanted == 0) & (x > 0)] = 1
    np.testing.assert_array_equal(found.largest.ravel(), published["largest"])
    assert len(np.unique(wanted)) > 150, "most of the table is asked for"
    np.testing.assert_array_equal(found.codes, wanted)


def test_a_few_steps_are_those_of_bitsandbytes(published):
    grads = published["gradients"].astype(np.float32) / 1024
    transform = scale_by_adam_8bit()
    state, update = transform.init({"x": grads[0]}), jax.jit(transform.update)
    for grad in grads:
        step, state = update({"x": jnp.asarray(grad)}, state)
    *_, exact = adam64(grads.astype(np.float64))

    def apart(one, other):
        return np.sqrt(np.mean((one - other) ** 2) / np.mean(exact**2))

    assert apart(step["x"], published["last_step"]) < 0.005
    assert 0.01 < apart(published["last_step"], exact) < 0.03, "so it is not the rounding that is small"
    assert apart(step["x"], exact) < 1.02 * apart(published["last_step"], exact)


def numbers(shape, seed, spread, size, zeros, signed):
    """Numbers of many magnitudes, some of them zero."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape) * 10.0 ** (size + random.uniform(-spread, 0, shape))
    x = x * (random.random(shape) >= zeros)
    return (x if signed else np.abs(x)).astype(np.float32)


def joined(x):
    """Blocks of 256 as the module's text says: within rows that are whole blocks, else over the matrix."""
    rows = x if x.shape[-1] % 256 == 0 else x.reshape(*x.shape[:-2], -1) if x.ndim > 1 else x
    return [row[at : at + 256] for row in rows.reshape(-1, rows.shape[-1]) for at in range(0, rows.shape[-1], 256)]


@pytest.mark.parametrize("signed", [True, False])
@settings(max_examples=60)
@given(
    shape=st.sampled_from([(3, 256), (2, 512), (5, 16), (2, 3, 300), (7,), (4, 2, 3)]),
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.0, 1.0, 4.0, 9.0]),
    size=st.integers(-20, 15),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_nearest_value_of_the_codebook_is_chosen(signed, shape, seed, spread, size, zeros):
    x = numbers(shape, seed, spread, size, zeros, signed)
    found = quantize(jnp.asarray(x), signed=signed)
    assert found.codes.shape == x.shape
    got = np.asarray(dequantize(found, signed=signed), np.float64)
    table = codebook(signed).astype(np.float64)
    bound = 0.45 / (64 if signed else 128)
    largest = iter(np.asarray(found.largest).ravel())
    for block, values in zip(joined(x.astype(np.float64)), joined(got), strict=True):
        most, rounding = np.abs(block).max(), 3e-7 * np.abs(block)
        assert next(largest) == np.float32(most)
        error = np.abs(values - block)
        best = np.abs(block[:, None] - table * most).min(1)
        # a second moment that is not zero is never made so
        raised = (block > 0) & (block < 1.625e-7 * most) & (not signed)
        assert (error <= best + rounding)[~raised].all()
        np.testing.assert_allclose(values[raised], 3.25e-7 * most, rtol=1e-5)
        for decade in range(7):
            inside = (np.abs(block) >= most * 10.0 ** -(decade + 1)) & (np.abs(block) <= most * 10.0**-decade)
            assert (error <= most * bound * 0.2**decade + rounding)[inside].all()
        assert (error <= most * bound * 1.00001).all()
        assert (values[block == 0] == 0).all()
        assert ((values == 0) | (np.sign(values) == np.sign(block))).all()


def test_a_second_moment_is_never_rounded_to_zero():
    x = jnp.array([[1.0, 1e-9, 1e-30, 0.0] + [0.0] * 252])
    got = dequantize(quantize(x, signed=False), signed=False)
    assert (got[0, :4] > 0).tolist() == [True, True, True, False]


# ---- the whole optimizer

# a stack in rows of whole blocks, one of joined rows, one too small, vectors, an unstacked matrix
SHAPES = {
    "embed.embedding": (40, 256),
    "layers.mlp.up.kernel": (2, 24, 512),
    "layers.mlp.up.lora_a": (2, 576, 8),
    "layers.mlp.up.lora_b": (2, 8, 100),
    "layers.norm.scale": (2, 6000),
}
EIGHT = {"embed.embedding", "layers.mlp.up.kernel", "layers.mlp.up.lora_a"}


def draw(seed, shapes=SHAPES, scale=1.0):
    random = np.random.default_rng(seed)
    leaves = {path: jnp.asarray(random.standard_normal(shape) * scale, jnp.float32) for path, shape in shapes.items()}
    return tree.unflatten(leaves)


def test_what_is_held_in_8_bits_and_how_many_bytes_that_is():
    params = draw(0)
    state = jax.jit(scale_by_adam_8bit().init)(params)
    for moment, zero in ((state.mu, 127), (state.nu, 0)):
        for path, shape in SHAPES.items():
            held = moment
            for key in path.split("."):
                held = held[key]
            assert isinstance(held, Quantized) == (path in EIGHT), path
            if path in EIGHT:
                assert (held.codes.shape, held.codes.dtype) == (shape, jnp.uint8)
                assert (held.codes == zero).all()
                assert (held.largest == 0).all()
                per_parameter = sum(x.nbytes for x in held) / held.codes.size
                assert per_parameter == pytest.approx(1 + 4 / 256, rel=1e-3), path
            else:
                assert held.dtype == jnp.float32


@pytest.mark.slow
def test_each_layer_and_each_part_is_as_if_it_stood_alone(monkeypatch):
    """Layers do not mix, and cutting a matrix into parts, for less memory, changes nothing.

    Operation by operation: compiled, two programs join multiplications and additions in other places, and round apart.
    """
    transform = scale_by_adam_8bit()
    shapes = {path: SHAPES[path] for path in EIGHT} | {"odd": (7, 1000)}
    grads = [draw(seed, shapes) for seed in range(3)]

    def run(grads):
        with jax.disable_jit():
            state = transform.init(grads[0])
            for grad in grads:
                steps, state = transform.update(grad, state)
        return steps, state

    steps, state = run(grads)
    monkeypatch.setattr(module, "PART", 2000)
    parts = run(grads)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), steps, parts[0])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), state, parts[1])
    alone, _ = run([{path: x[1] for path, x in tree.flatten(grad["layers"]).items()} for grad in grads])
    for path, step in tree.flatten(alone).items():
        np.testing.assert_allclose(tree.flatten(steps["layers"])[path][1], step, rtol=1e-6, err_msg=path)


def adam64(grads, b1=0.9, b2=0.999, eps=1e-8):
    """Adam in float64, as the paper has it: the step of each gradient in turn."""
    mean = square = 0.0
    for t, grad in enumerate(grads, 1):
        mean, square = b1 * mean + (1 - b1) * grad, b2 * square + (1 - b2) * grad**2
        yield mean / (1 - b1**t) / (np.sqrt(square / (1 - b2**t)) + eps)


def test_the_first_step_is_adams_and_the_next_are_near_it():
    transform = scale_by_adam_8bit()
    grads = [draw(seed, scale=0.01) for seed in range(4)]
    state, update = transform.init(grads[0]), jax.jit(transform.update)
    wanted = {p: adam64([np.asarray(tree.flatten(g)[p], np.float64) for g in grads]) for p in SHAPES}
    for at, grad in enumerate(grads):
        steps, state = update(grad, state)
        for path, step in tree.flatten(steps).items():
            want = next(wanted[path])
            if at == 0 or path not in EIGHT:  # nothing rounded has been read yet
                np.testing.assert_allclose(step, want, rtol=2e-5, atol=1e-5, err_msg=path)
            else:
                assert np.sqrt(np.mean((step - want) ** 2)) < 0.05 * np.sqrt(np.mean(want**2)), path


def test_a_regression_goes_as_with_adam_in_float64():
    """300 steps: the loss of each is within 3 % of that of float64, and both fall by a factor of 100."""
    random = np.random.default_rng(0)
    x, truth = random.standard_normal((256, 64)), random.standard_normal((64, 128))
    first, second = random.standard_normal((64, 96)) * 0.1, random.standard_normal((96, 128)) * 0.1
    y = np.tanh(x @ truth * 0.2)
    rates = 0.003 * np.minimum(1, np.arange(1, 301) / 20) * np.linspace(1, 0.05, 300)

    def loss(params):
        return jnp.square(jnp.tanh(jnp.asarray(x) @ params["a"]) @ params["b"] - jnp.asarray(y)).mean()

    def train(transform, params, dtype):
        def step(carry, rate):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            steps, state = transform.update(grads, state, params)
            return (jax.tree.map(lambda p, s: (p - rate * s).astype(dtype), params, steps), state), value

        params = {name: jnp.asarray(value, dtype) for name, value in params.items()}
        run = jax.jit(lambda p, s, r: jax.lax.scan(step, (p, s), r)[1])
        return np.asarray(run(params, transform.init(params), jnp.asarray(rates, dtype)), np.float64)

    with jax.enable_x64(True):
        exact = train(optax.scale_by_adam(), {"a": first, "b": second}, jnp.float64)
    assert exact.dtype == np.float64
    x, y = x.astype(np.float32), y.astype(np.float32)
    eight = train(scale_by_adam_8bit(), {"a": first, "b": second}, jnp.float32)
    assert exact[-1] < exact[0] / 15
    np.testing.assert_allclose(eight, exact, rtol=0.03)


def test_memory_of_the_update_is_that_of_a_part():
    """Beside what is given and taken over, no float32 copy of a moment is made."""
    params = {"layers": {"up": {"kernel": jax.ShapeDtypeStruct((16, 256, 512), jnp.float32)}}}
    transform = scale_by_adam_8bit()
    state = jax.eval_shape(transform.init, params)
    compiled = jax.jit(transform.update, donate_argnums=(0, 1)).lower(params, state).compile()
    size = 16 * 256 * 512
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 6 * size  # gradient -> step, codes -> codes
    assert memory.temp_size_in_bytes < 1.5 * size, (
        "of one layer, not of 16 (which would be 8 bytes a parameter or more)"
    )


def test_on_a_mesh_it_lies_as_its_parameter_and_computes_the_same():
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    shapes = {"layers.up.kernel": (2, 32, 1024), "embed.embedding": (64, 512)}
    specs = {
        "layers.up.kernel": PartitionSpec(None, "fsdp", "tensor"),
        "embed.embedding": PartitionSpec("tensor", "fsdp"),
    }
    transform, grads = scale_by_adam_8bit(), [draw(seed, shapes) for seed in range(2)]

    def run(grads, state):
        update = jax.jit(transform.update)
        for grad in grads:
            steps, state = update(grad, state)
        return steps, state

    alone = run(grads, transform.init(grads[0]))

    def place(path, x):
        return jax.device_put(x, NamedSharding(mesh, specs[path]))

    placed = [tree.map_with_path(place, grad) for grad in grads]
    start = transform.init(placed[0])

    def beside(moment):
        return {
            "layers": {
                "up": {"kernel": Quantized(*(place("layers.up.kernel", x) for x in moment["layers"]["up"]["kernel"]))}
            },
            "embed": {"embedding": Quantized(*(place("embed.embedding", x) for x in moment["embed"]["embedding"]))},
        }

    spread = run(placed, start._replace(mu=beside(start.mu), nu=beside(start.nu)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), alone, spread)
    codes = spread[1].mu["layers"]["up"]["kernel"].codes
    assert codes.addressable_shards[0].data.size == codes.size / 4, "still split, not gathered"
