"""How many floating point operations a decoder-only transformer takes, from its shape alone.

A product of [m, k] and [k, n] is 2*m*k*n operations. Only matrix products are counted: norms, rope, softmax, the
embedding lookup, the optimizer and DoRA's column norms are below a per cent of a step. For one token that attends to
`context` keys, with N matrix parameters:

    forward             2 N  +  4 * layers * heads * head_dim * context
    input gradients     the same matrices again; attention twice (each of its two products has two inputs)
    weight gradients    2 * (matrix parameters that train)

which is the `6 N + 12 * layers * heads * head_dim * length` of PaLM when everything trains and `context = length`.
A frozen matrix costs its forward and its input gradient, but no weight gradient: 4 N instead of 6 N.

Sources: Kaplan et al. 2020, arXiv 2001.08361, section 2.1 (2 N forward, 6 N training); Chowdhery et al. 2022 (PaLM),
arXiv 2204.02311, appendix B (the attention term; model FLOPs utilisation, which leaves recomputation out).
PaLM and most others count attention without the causal mask (`context = length`); `causal_context` gives what a causal
model needs, about half of it. Say which one a number uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxlean.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder that decide its cost.

    Args:
        num_layers: decoder blocks.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated MLP (gate, up and down projections).
        num_heads: query heads.
        num_kv_heads: key and value heads (grouped-query attention where fewer).
        head_dim: width of a head; need not be hidden_size / num_heads.
        vocab_size: rows of the embedding, columns of the head.
        lora_ranks: rank of the adapter on each adapted matrix of a layer, by name: query, key, value, out, gate, up,
            down. Empty: no adapter.

    Raises:
        ConfigError: a name in `lora_ranks` that is not a matrix of a layer.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    lora_ranks: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in self.lora_ranks:
            if name not in self.layer_matrices():
                raise ConfigError("no such matrix in a layer", got=name, fix=did_you_mean(name, self.layer_matrices()))

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """`{name: (in, out)}` of the matrices of one layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "query": (hidden, queries),
            "key": (hidden, keys),
            "value": (hidden, keys),
            "out": (queries, hidden),
            "gate": (hidden, inner),
            "up": (hidden, inner),
            "down": (inner, hidden),
        }

    @property
    def layer_params(self) -> int:
        """Parameters of the base matrices of all layers."""
        return self.num_layers * sum(rows * columns for rows, columns in self.layer_matrices().values())

    @property
    def head_params(self) -> int:
        """Parameters of the matrix that gives the logits; it is multiplied with, tied to the embedding or not."""
        return self.hidden_size * self.vocab_size

    @property
    def lora_params(self) -> int:
        """Parameters of the adapter: rank * (in + out) for each adapted matrix."""
        matrices = self.layer_matrices()
        return self.num_layers * sum(rank * sum(matrices[name]) for name, rank in self.lora_ranks.items())

    def attention_flops(self, context: float) -> float:
        """Scores and weighted sum, all layers, forward, for one token that attends to `context` keys."""
        return 4.0 * self.num_layers * self.num_heads * self.head_dim * context


def causal_context(length: int, window: int | None = None) -> float:
    """Keys a token attends to, itself included, averaged over a causal sequence of `length` tokens.

    Args:
        length: tokens in the sequence; with packing, in the packed example.
        window: sliding window (keys a token may see, itself included), where the model has one.

    >>> causal_context(4)
    2.5
    >>> causal_context(4, window=2)
    1.75
    """
    if window is None or window >= length:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


def forward_flops_per_token(shape: Shape, context: float) -> float:
    """FLOPs of one token's forward pass with its logits, attending to `context` keys (see `causal_context`)."""
    return 2.0 * (shape.layer_params + shape.head_params + shape.lora_params) + shape.attention_flops(context)


def training_flops_per_token(
    shape: Shape, context: float, *, trainable_params: int | None = None, remat: bool = False
) -> float:
    """FLOPs of forward and backward for one token.

    Args:
        context: keys a token attends to, on average.
        trainable_params: matrix parameters that get a weight gradient. Default: the adapter's where the shape has one,
            else all of them. The embedding has none to count: its gradient is a scatter.
        remat: count the second forward of the layers that full rematerialisation does (not for model FLOPs
            utilisation, which measures useful work). The head is never recomputed.

    Input gradients are counted for every layer, the first too: a scan over layers computes them all.
    """
    if trainable_params is None:
        trainable_params = shape.lora_params or shape.layer_params + shape.head_params
    attention = shape.attention_flops(context)
    layers = 2.0 * (shape.layer_params + shape.lora_params)
    head = 2.0 * shape.head_params
    forward = layers + head + attention
    input_gradients = layers + head + 2 * attention
    weight_gradients = 2.0 * trainable_params
    recomputed = layers + attention if remat else 0.0
    return forward + input_gradients + weight_gradients + recomputed


def training_step_flops(
    shape: Shape,
    rows: int,
    length: int,
    *,
    window: int | None = None,
    causal: bool = True,
    trainable_params: int | None = None,
    remat: bool = False,
) -> float:
    """FLOPs of one optimizer step over `rows` sequences of `length` tokens; padding is computed, so it is counted.

    Args:
        window: sliding window of the attention, in tokens.
        causal: count the keys a causal token may see; False counts the whole square, as PaLM does and as a plain
            attention kernel computes.
        trainable_params, remat: see `training_flops_per_token`.
    """
    context = causal_context(length, window) if causal else float(length)
    return rows * length * training_flops_per_token(shape, context, trainable_params=trainable_params, remat=remat)


def model_flops_utilisation(flops: float, seconds: float, peak_flops_per_second: float, num_devices: int = 1) -> float:
    """Share of the devices' peak that went into `flops` of useful work (PaLM, appendix B), 0 to 1.

    Args:
        flops: of the work done, without recomputation.
        seconds: wall time it took.
        peak_flops_per_second: of one device, in the number format of the products.
        num_devices: devices that worked on it.

    >>> model_flops_utilisation(flops=5e14, seconds=1.0, peak_flops_per_second=1e15)
    0.5
    """
    assert min(seconds, peak_flops_per_second, num_devices) > 0
    return flops / (seconds * peak_flops_per_second * num_devices)
