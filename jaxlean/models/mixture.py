"""A mixture of experts in the place of an MLP: a router sends each token to a few of many MLPs (arXiv 2101.03961).

No token is dropped: tokens are sorted by expert, and each expert multiplies as many rows as come to it
(`models/grouped.py`). On a mesh whose axis `expert` splits them, each device takes the tokens of all devices of that
axis through its own experts, and what comes out is added up: exact, whichever way the tokens go.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxlean import codec
from jaxlean.models.activation import ACTIVATION_FUNCTIONS
from jaxlean.models.config import Experts, LayersConfig
from jaxlean.models.cpu import from_bits, keep, to_bits
from jaxlean.models.grouped import GroupedLinear, Leaves, grouped_linear
from jaxlean.models.layout import ALONE, FOLDED, Layout
from jaxlean.models.linear import Dropout, Linear, dot_wide
from jaxlean.models.mlp import MLP

# Which experts a token goes to. Every remat policy keeps it: computed again, a near tie could turn out otherwise.
ROUTING = "routing"


class Load(NamedTuple):
    """How a layer's tokens spread over its experts, padding left out; sums over the tokens."""

    chosen: jax.Array  # float32 [experts], how often each was
    probability: jax.Array  # float32 [experts], that the router gave each


def balance_loss(loads: list[Load], tokens: jax.Array, num_layers: int) -> jax.Array:
    """The loss that is least when all experts have the same load (arXiv 2101.03961, equations 4 to 6).

    As transformers' `load_balancing_loss_func`: over all layers together.

    Args:
        loads: of layers, in stacks.
        tokens: how many there are, padding left out.
        num_layers: of all stacks.

    Returns:
        float32 []; its least is the number of experts that a token goes to.
    """
    chosen, probability = (sum(x.reshape(-1, x.shape[-1]).sum(0) for x in parts) for parts in zip(*loads, strict=True))
    rows = jnp.maximum(tokens.astype(jnp.float32) * num_layers, 1.0)
    return chosen.shape[-1] * jnp.sum((chosen / rows) * (probability / rows))


class Mixture(nnx.Module):
    """The weighted sum of the outputs of the experts that the router chose, and of an MLP that all tokens may share.

    Args:
        config: its shape; `config.experts` is there.
        dtype: what matrices are multiplied in; the router's scores are float32.
        rngs: draws the kernels.
    """

    def __init__(self, config: LayersConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        experts, hidden, std = config.experts, config.hidden_size, config.initializer_range
        assert experts is not None
        self.router = Linear(hidden, experts.num, bias=experts.bias, std=std, dtype=dtype, rngs=rngs)
        self.correction = nnx.Param(jnp.zeros((experts.num,), jnp.float32)) if experts.correction else None
        self.experts = _Experts(config, experts, dtype=dtype, rngs=rngs)
        self.shared = MLP(config, width=experts.shared_size, dtype=dtype, rngs=rngs) if experts.shared_size else None
        self.shared_gate = (
            Linear(hidden, 1, bias=False, std=std, dtype=dtype, rngs=rngs) if experts.shared_gate else None
        )
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.config = experts
        self.layout: Layout = ALONE

    def __call__(self, x: jax.Array, dropout: Dropout | None, segments: jax.Array) -> tuple[jax.Array, Load]:
        """Send the tokens through.

        Args:
            x: [batch, length, hidden].
            dropout: of the adapters; those of the experts have none.
            segments: int32 [batch, length], 0 is padding.

        Returns:
            ([batch, length, hidden], the load of the experts).
        """
        scores, chosen, weights = self._routed(x, dropout)
        y = self._through_experts(x.astype(self.experts.down.dtype), chosen, weights)
        if self.shared is not None:
            shared = self.shared(x, dropout)
            if self.shared_gate is not None:
                opened = jax.nn.sigmoid(self.shared_gate(x, _fold(dropout, 8)).astype(jnp.float32))
                shared = (opened * shared.astype(jnp.float32)).astype(shared.dtype)
            y = y + shared
        y = keep(self.layout.constrain(y, "mlp_out"), "mlp_out")
        seen = (segments != 0)[..., None]
        times = (chosen[..., None] == jnp.arange(self.config.num)).sum(axis=-2)
        probability = jax.nn.softmax(scores, axis=-1)
        sums = (jnp.where(seen, z, 0).sum(axis=(0, 1), dtype=jnp.float32) for z in (times, probability))
        return y, Load(*sums)

    def _routed(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(float32 logits [.., experts], int32 the chosen [.., per_token], float32 their weights [.., per_token])."""
        config, router = self.config, self.router
        if router.kernel is not None and router.lora_a is None:
            x = x.astype(router.dtype)
            logits = dot_wide(x, router.kernel[...].astype(x.dtype))
            if router.bias is not None:
                logits = logits + router.bias[...].astype(jnp.float32)
        else:
            logits = router(x, _fold(dropout, 7)).astype(jnp.float32)
        match config.scores:
            case "softmax":
                scores = jax.nn.softmax(logits, axis=-1)
            case "sigmoid":
                scores = jax.nn.sigmoid(logits)
            case "chosen":
                scores = logits
        for_choice = scores if self.correction is None else scores + self.correction[...].astype(jnp.float32)
        chosen = _chosen(config, jax.lax.stop_gradient(for_choice))
        chosen = checkpoint_name(chosen, ROUTING)
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        if config.scores == "chosen":
            weights = jax.nn.softmax(weights, axis=-1)
        elif config.norm_weights:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        return logits, chosen, weights if config.scale == 1.0 else weights * config.scale

    def _through_experts(self, x: jax.Array, chosen: jax.Array, weights: jax.Array) -> jax.Array:
        leaves = self.experts.leaves()
        run = partial(_run, self.config, self.activation, self.experts.down.matmul)
        mesh = self.layout.mesh
        if mesh is None:
            return run(x, chosen, weights, leaves)
        split = mesh.shape["tensor"] > 1
        specs = {name: {leaf: _spec(name, leaf, own, split) for leaf in own} for name, own in leaves.items()}
        rows = PartitionSpec(FOLDED, None, None)
        run = partial(run, mesh={axis: mesh.shape[axis] for axis in ("expert", "tensor")})
        return self.layout.on_each_device(run, (rows, rows, rows, specs), rows)(x, chosen, weights, leaves)


class _Experts(nnx.Module):
    def __init__(self, config: LayersConfig, experts: Experts, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        hidden, inner = config.hidden_size, experts.intermediate_size
        linear = partial(
            GroupedLinear, experts.num, bias=experts.bias, std=config.initializer_range, dtype=dtype, rngs=rngs
        )
        if experts.fused:
            self.gate_up = linear(hidden, 2 * inner)
        else:
            self.gate = linear(hidden, inner)
            self.up = linear(hidden, inner)
        self.down = linear(inner, hidden)
        self.fused = experts.fused

    def leaves(self) -> dict[str, dict[str, jax.Array]]:
        names = ("gate_up", "down") if self.fused else ("gate", "up", "down")
        return {name: getattr(self, name).leaves() for name in names}


def _chosen(config: Experts, scores: jax.Array) -> jax.Array:
    """int32 [.., per_token]: the experts of the highest scores, of the groups that the token may go to."""
    if config.groups > 1:
        grouped = scores.reshape(*scores.shape[:-1], config.groups, -1)
        # DeepSeek-V2 goes by a group's best expert, V3 by its best two
        best = jax.lax.top_k(grouped, 2)[0].sum(-1) if config.scores == "sigmoid" else grouped.max(-1)
        allowed = jax.lax.top_k(best, config.groups_per_token)[1]
        open_ = (allowed[..., None] == jnp.arange(config.groups)).any(axis=-2)
        scores = jnp.where(open_[..., None], grouped, -jnp.inf).reshape(scores.shape)
    return jax.lax.top_k(scores, config.per_token)[1]


def _run(
    config: Experts,
    activation: Callable[[jax.Array], jax.Array],
    matmul: Any,
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    leaves: Mapping[str, Leaves],
    mesh: dict[str, int] | None = None,
) -> jax.Array:
    """Tokens [batch, length, hidden] through the experts that are here; with a mesh, on one of its devices."""
    axes = mesh if mesh is not None else {"expert": 1, "tensor": 1}
    split, parted = axes["expert"] > 1, axes["tensor"] > 1
    if split:
        x, chosen, weights = (jax.lax.all_gather(y, "expert", axis=0, tiled=True) for y in (x, chosen, weights))
    if parted:
        leaves = {name: _own(name, own, axes["tensor"], x.dtype) for name, own in leaves.items()}
    here = config.num // axes["expert"]
    number = chosen.reshape(-1)
    if split:
        number = number - jax.lax.axis_index("expert") * here
        number = jnp.where((number >= 0) & (number < here), number, here)
    order = jnp.argsort(number, stable=True)
    back = jnp.argsort(order)
    sizes = (number[:, None] == jnp.arange(here)).sum(axis=0, dtype=jnp.int32)
    linear = partial(grouped_linear, sizes=sizes, matmul=matmul, rest=split)

    rows = _permuted(jnp.repeat(x.reshape(-1, x.shape[-1]), config.per_token, axis=0), order, back)
    if config.fused:
        both = linear(rows, leaves["gate_up"])
        gate, up = both[:, 0::2], both[:, 1::2]
    else:
        gate, up = linear(rows, leaves["gate"]), linear(rows, leaves["up"])
    gate, up = keep(gate, "gate").astype(jnp.float32), keep(up, "up").astype(jnp.float32)
    if config.clamp is not None:
        gate, up = jnp.minimum(gate, config.clamp), jnp.clip(up, -config.clamp, config.clamp) + 1.0
        inner = gate * jax.nn.sigmoid(gate * config.clamp_slope) * up
    else:
        inner = activation(gate) * up
    out = _permuted(linear(inner.astype(x.dtype), leaves["down"]), back, order)
    out = out.reshape(*chosen.shape, -1).astype(jnp.float32)
    y = (out * weights[..., None]).sum(axis=-2)
    if split:
        y = jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True)
    if parted:
        y = jax.lax.psum(y, "tensor")
    return y.astype(x.dtype)


@jax.custom_vjp
def _permuted(x: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
    """The rows of x in an order, of which `back` is the inverse; so is the gradient's, which needs no sums."""
    return from_bits(jnp.take(to_bits(x), order, axis=0, unique_indices=True, mode="clip"))


def _permuted_forward(x: jax.Array, order: jax.Array, back: jax.Array) -> tuple[jax.Array, Any]:
    return _permuted(x, order, back), (order, back)


def _permuted_backward(saved: Any, grad: jax.Array) -> tuple[jax.Array, None, None]:
    order, back = saved
    return _permuted(grad, back, order), None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)


def _spec(module: str, leaf: str, own: Leaves, split: bool) -> PartitionSpec:
    """Where each device of `tensor` has its part of a leaf [experts, ..]; all of it where it cannot be cut."""
    rows, columns = ("tensor", None) if module == "down" else (None, "tensor")
    if not split or ("kernel_nf4" in own and leaf.startswith("kernel")):  # its blocks may reach over the border
        rows = columns = None
    match leaf:
        case "lora_a":
            return PartitionSpec("expert", rows, None)
        case "lora_b":
            return PartitionSpec("expert", None, columns)
        case "bias" | "kernel_scale":
            return PartitionSpec("expert", columns)
        case "kernel" | "kernel_int8":
            return PartitionSpec("expert", rows, columns)
        case _:
            return PartitionSpec("expert")


def _own(module: str, leaves: Leaves, parts: int, dtype: Any) -> Leaves:
    """A device's part of what `tensor` splits: of an NF4 kernel, decoded; and the bias of a sum only once."""
    index, out = jax.lax.axis_index("tensor"), dict(leaves)
    if "kernel_nf4" in leaves:
        (held,) = codec.kernels({f"_.{name}": leaf for name, leaf in leaves.items()}).values()
        kernel = codec.decode(held, dtype)
        axis = 1 if module == "down" else 2
        size = kernel.shape[axis] // parts
        kernel = jax.lax.dynamic_slice_in_dim(kernel, index * size, size, axis)
        out = {name: leaf for name, leaf in leaves.items() if name not in held} | {"kernel": kernel}
    if module == "down" and "bias" in leaves:
        out["bias"] = jnp.where(index == 0, leaves["bias"], 0)
    return out


def _fold(dropout: Dropout | None, place: int) -> Dropout | None:
    return dropout.fold(place) if dropout is not None else None
