"""Work counted off a jaxpr is the analytic number, and the shortcut over sets of names is what jax really does."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection
from jaxlean.cost.flops import Shape, training_step_flops
from jaxlean.models.build import abstract
from jaxlean.models.cpu import hold
from jaxlean.models.decoder import ACTIVATIONS, DecoderConfig
from jaxlean.xla.precision import parameter_dtype
from jaxlean.xla.remat import scan_layers
from jaxlean.xla.work import Recomputation, as_one_kernel, count, kept_bytes, largest_result, repeated

LAYERS, ROWS, LENGTH, RANK = 3, 2, 16, 4
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 48, "num_layers": LAYERS, "num_heads": 4,
         "num_kv_heads": 2, "head_dim": 8}  # fmt: skip
CONFIG = DecoderConfig(**SIZES)
MATRICES = Shape(**SIZES).layer_matrices()


def trace(policy, *, adapter=False, dtype=jnp.float32, attention="plain"):
    """The jaxpr of the gradient of what trains; in bfloat16 as a run on CPU has it, frozen stacks as their bits."""
    _, params = abstract(CONFIG)
    trains = lora.is_adapter if adapter else lambda path: True
    if adapter:
        section = LoraSection(r=RANK)
        params = jax.eval_shape(
            lambda: lora.add(
                jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), params),
                lora.targets(params, "all-linear"), section, jax.random.key(0),
            )
        )  # fmt: skip
    held = parameter_dtype(jnp.dtype(dtype), trains)
    params = tree.map_with_path(lambda path, x: jax.ShapeDtypeStruct(x.shape, held(path)), params)
    graph, _ = abstract(CONFIG, params, dtype=dtype, attention=attention)
    trainable, frozen = tree.split(params, trains)
    frozen = jax.eval_shape(hold, frozen)
    scan = scan_layers(policy, ACTIVATIONS)

    def loss(trainable, frozen, tokens):
        return jnp.square(nnx.merge(graph, tree.merge(trainable, frozen))(tokens, scan=scan)).mean()

    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    return jax.jit(jax.grad(loss)).trace(trainable, frozen, tokens).jaxpr.jaxpr


@pytest.fixture(scope="module")
def full():
    with jax.numpy_dtype_promotion("strict"):
        return trace("full")


@pytest.mark.parametrize("adapter", [False, True])
def test_flops_are_the_analytic_ones(adapter):
    """To keep everything and to keep nothing, the whole square of scores counted."""
    shape = Shape(**SIZES, lora_ranks=dict.fromkeys(MATRICES, RANK) if adapter else {})
    analytic = {remat: training_step_flops(shape, ROWS, LENGTH, causal=False, remat=remat) for remat in (False, True)}
    assert count(trace("none", adapter=adapter)).total_flops == analytic[False]
    # of the second forward jax leaves out what only the layer's result needs: `down`, and its adapter's last product
    rows, columns = MATRICES["down"]
    unneeded = 2 * LAYERS * ROWS * LENGTH * (rows * columns + (RANK * columns if adapter else 0))
    assert count(trace("full", adapter=adapter)).total_flops == analytic[True] - unneeded


@pytest.mark.parametrize("adapter", [False, True])
def test_the_walk_is_what_jax_does(full, adapter):
    """For sets of names: FLOPs, other operations and bytes of the real trace."""
    whole = trace("full", adapter=True) if adapter else full
    graph, everything = Recomputation(whole), count(whole)
    recomputed, _ = graph.without(())
    sets = [("gate",), ("attention_in", "value", "attention_out", "up", "mlp_out"), ACTIVATIONS]
    for kept in sets:
        real = trace(list(kept), adapter=adapter)
        left, sizes = graph.without(kept)
        assert count(real).total_flops == everything.total_flops - recomputed.total_flops + left.total_flops, kept
        assert count(real).elements == everything.elements - recomputed.elements + left.elements, kept
        assert kept_bytes(real) - kept_bytes(whole) == sum(sizes.get(name, 0) for name in kept), kept


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_walk_sees_into_gradients_of_ones_own(dtype):
    """Attention in blocks and fused projections name what they keep inside of their own gradients; on CPU as bits."""

    def real(policy):
        return trace(policy, adapter=True, dtype=dtype, attention="block")

    whole = real("full")
    graph, everything = Recomputation(whole), count(whole)
    recomputed, sizes = graph.without(())
    assert set(graph.names) == set(ACTIVATIONS) - {"mlp_out"}  # from which nothing is computed again
    width, tokens = jnp.dtype(dtype).itemsize, LAYERS * ROWS * LENGTH
    assert sizes["context"] == width * tokens * CONFIG.num_heads * CONFIG.head_dim
    assert sizes["attention_lse"] == 4 * tokens * CONFIG.num_heads
    # of four inputs: attention's three projections, out, gate and up, down
    assert sizes["lora_low"] == width * tokens * (3 + 1 + 2 + 1) * RANK
    for kept in [
        ("context",),
        ("gate", "lora_low"),
        ("query", "key", "value", "context", "attention_lse"),
        ACTIVATIONS,
    ]:
        left, _ = graph.without(kept)
        found = count(real(list(kept)))
        for dtype_name, flops in everything.flops.items():
            assert found.flops[dtype_name] == flops - recomputed.flops[dtype_name] + left.flops[dtype_name], kept
        assert found.product_bytes == everything.product_bytes - recomputed.product_bytes + left.product_bytes, kept
        # the sum that makes a kept log-sum-exp is read by nothing, but jax leaves it in the trace
        rest = everything.elements - recomputed.elements + left.elements
        assert found.elements - rest in (0, 5 * tokens * CONFIG.num_heads), kept
        assert kept_bytes(real(list(kept))) - kept_bytes(whole) == sum(sizes.get(name, 0) for name in kept), kept
    # with its context and log-sum-exp kept, attention's forward is not run again
    shorter = graph.without(("attention_lse", "context"))[0]
    attention = 2 * 2 * tokens * LENGTH * CONFIG.num_heads * CONFIG.head_dim
    assert recomputed.total_flops - shorter.total_flops == attention


def test_what_the_backward_pass_reads(full):
    graph = Recomputation(full)
    # the plain attention leaves no log-sum-exp, and nothing is computed from the layer's last product
    assert set(graph.names) == set(ACTIVATIONS) - {"mlp_out", "attention_lse", "lora_low"}
    work, sizes = graph.without(("mlp_in",))
    assert "attention_out" in sizes  # which mlp_norm's gradient reads
    assert sizes["gate"] == 4 * LAYERS * ROWS * LENGTH * CONFIG.intermediate_size
    # gate and up are products of what is kept; nothing of attention's is left out
    assert work.total_flops == graph.without(())[0].total_flops
    # with everything kept only the scores are multiplied again, and the values are not
    saved = graph.without(())[0].total_flops - graph.without(ACTIVATIONS)[0].total_flops
    linear = sum(rows * columns for name, (rows, columns) in MATRICES.items() if name != "down")
    values = CONFIG.num_heads * CONFIG.head_dim * LENGTH
    assert saved == 2 * LAYERS * ROWS * LENGTH * (linear + values)


def test_loops_calls_and_branches():
    square = jnp.ones((4, 4))

    def product(x):
        return x @ square

    def flops(function):
        return count(jax.make_jaxpr(function)(square).jaxpr).total_flops

    one = 2 * 4**3
    assert flops(product) == one
    assert flops(jax.jit(product)) == one
    assert flops(lambda x: jax.lax.scan(lambda c, _: (product(c), None), x, None, length=5)[0]) == 5 * one
    assert flops(lambda x: jax.lax.cond(x[0, 0] > 0, product, lambda x: x, x)) == one
    assert flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, product, x)) == one  # once: nobody knows
    assert count(jax.make_jaxpr(lambda x: jnp.exp(x).reshape(16).sum())(square).jaxpr).elements == 4 * 16 + 16
    work = count(jax.make_jaxpr(lambda x: jnp.dot(x, x))(square.astype(jnp.bfloat16)).jaxpr)
    assert dict(work.flops) == {"bfloat16": one}
    assert work.product_bytes == 3 * 2 * 16  # two matrices in, one out


def test_of_a_kernel_the_products_count_as_often_as_its_grid_and_nothing_else():
    pallas = pytest.importorskip("jax.experimental.pallas")

    def kernel(x, out):
        out[...] = jnp.exp(jnp.dot(x[...], x[...]))

    block = pallas.BlockSpec((8, 8), lambda i: (i, 0))
    call = pallas.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct((24, 8), jnp.float32), grid=(3,), in_specs=[block], out_specs=block
    )
    work = count(jax.make_jaxpr(call)(jnp.ones((24, 8))).jaxpr)
    assert (work.total_flops, work.product_bytes, work.elements) == (3 * 2 * 8**3, 0, 0)


def test_what_runs_on_each_device_counts_on_each():
    def gradient(matrix, x):
        def layer(x, _):
            kept = checkpoint_name(x @ matrix, "gate")
            return jnp.tanh(kept) @ matrix, None

        scan = scan_layers("full", ["gate"])
        return jax.grad(lambda x: scan(layer, x, jnp.zeros(5))[0].sum())(x)

    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    matrix, x = jnp.ones((8, 8)), jnp.ones((4, 8))
    one = jax.make_jaxpr(gradient)(matrix, x[:2]).jaxpr
    spec = PartitionSpec("data")
    each = jax.shard_map(
        gradient, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, axis_names={"data"}, check_vma=False
    )
    both = jax.make_jaxpr(each)(matrix, x).jaxpr
    assert kept_bytes(both) == 2 * kept_bytes(one) > 0
    assert count(both).total_flops == 2 * count(one).total_flops
    work, sizes = Recomputation(both).without(())
    alone, of_one = Recomputation(one).without(())
    assert (work.total_flops, sizes) == (2 * alone.total_flops, {"gate": 2 * of_one["gate"]})


def test_largest_result(full):
    # the logits are no larger than a layer's gate, of which no scan keeps any
    layer_inputs = 4 * LAYERS * ROWS * LENGTH * CONFIG.hidden_size
    gradients = 4 * LAYERS * CONFIG.hidden_size * CONFIG.intermediate_size
    assert largest_result(full) == max(layer_inputs, gradients, 4 * ROWS * LENGTH * CONFIG.intermediate_size)


def test_a_stand_in_counts_as_the_kernel_that_it_stands_for():
    def step(x):
        with jax.named_scope("stand_in"):
            x = jnp.tanh(x @ x)
        return jnp.sin(x)

    def counted():
        return count(jax.make_jaxpr(step)(jnp.ones((8, 8))).jaxpr)

    whole = counted()
    with as_one_kernel("stand_in"):
        kernel = counted()
    assert kernel.total_flops == whole.total_flops == 2 * 8**3
    outside = count(jax.make_jaxpr(jnp.sin)(jnp.ones((8, 8))).jaxpr)
    assert kernel.elements == outside.elements < whole.elements
    assert kernel.product_bytes < whole.product_bytes


def test_what_several_devices_do_alike_counts_as_often():
    def step(x):
        def update(x):
            with jax.named_scope("update"):
                return jax.jit(lambda x: jnp.where(x > 0, x * 2.0, x) @ x)(x)

        return jax.lax.cond(x.sum() > 0, update, lambda x: x, jnp.sin(x @ x))

    def counted():
        return count(jax.make_jaxpr(step)(jnp.ones((8, 8))).jaxpr)

    once = counted()
    with repeated("update", 0.0):
        without = counted()
    with repeated("update", 5.0):
        five = counted()
    assert once.total_flops == 2 * without.total_flops == 2 * (2 * 8**3)
    assert five.total_flops == without.total_flops + 5 * (2 * 8**3), "once, also where it is a function of its own"
    assert five.elements - without.elements == 5 * (once.elements - without.elements) > 0


def test_a_ragged_product_multiplies_each_row_once():
    x, kernels, sizes = jnp.zeros((12, 5)), jnp.zeros((3, 5, 7)), jnp.asarray([4, 0, 8])
    work = count(jax.make_jaxpr(jax.lax.ragged_dot)(x, kernels, sizes).jaxpr)
    assert work.total_flops == 2 * 12 * 5 * 7
