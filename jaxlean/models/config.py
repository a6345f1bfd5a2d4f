"""The shape of a transformer's layers: what all layers of a model share, and how some differ from others.

The names are the field's; where Hugging Face's configs have one for a setting, it is theirs. Every setting but the
sizes is off unless a family turns it on.
"""

from dataclasses import dataclass
from typing import Literal

import jax

from jaxlean.models.projection import LORA_LOW
from jaxlean.models.rope import Rope

# Every activation of a layer that a remat policy can name, in the order they arise: `attention_lse` beside `context` is
# what the backward pass of attention needs; `lora_low` are all adapters' inner products.
ACTIVATIONS = (
    "attention_in", "query", "key", "value", "context", "attention_lse", "attention_out", "mlp_in", "gate", "up",
    "mlp_out", LORA_LOW,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a layer has that others of its model may not have.

    Args:
        window: how far a token sees, itself included; None: all of its sequence.
        rope: which of the config's rotary embeddings turns its queries and keys; None: none does (NoPE).
        sparse: whether its MLP is a mixture of experts.
        attention_norm: whether the input of its attention is normalised (ModernBERT's first is not).
        wide: its linear layers whose kernels stay as they are where others' are quantized: those too sensitive for it.
    """

    window: int | None = None
    rope: Literal["rope", "local_rope"] | None = "rope"
    sparse: bool = False
    attention_norm: bool = True
    wide: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Keys and values made of a narrow vector (`models.latent_attention`).

    Args:
        rank: of keys and values: width of that vector.
        query_rank: of queries; None: they are projected at once.
        rope_dim: features of a head that turn with the position, its last ones; the key's are the same for all heads.
        value_dim: features of a head's values.
        bias: of the projections to the narrow vectors.
    """

    rank: int
    query_rank: int | None
    rope_dim: int
    value_dim: int
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in the place of an MLP.

    Args:
        num: experts of a layer.
        per_token: how many of them a token goes to.
        intermediate_size: width of one.
        shared_size: width of an MLP that every token goes to as well; 0: none.
        shared_gate: whether a sigmoid of the token weighs that MLP.
        scores: of the experts, from the router's logits: `softmax`, `sigmoid` (DeepSeek-V3, arXiv 2412.19437), or
            `chosen`: the softmax over those that were chosen (gpt-oss).
        correction: whether a number for each expert, which has no gradient, is added to its score for the choice only.
        groups, groups_per_token: the experts are cut into so many groups, of which so many may be chosen from; 1: all.
        norm_weights: whether the chosen experts' scores are divided by their sum.
        scale: of the chosen experts' weights.
        fused: whether an expert's gate and up are one kernel, their columns in turn.
        bias: of the experts' and the router's products.
        clamp: the experts' inner values are cut off there, and gated as gpt-oss does; None: a plain gated MLP.
        clamp_slope: gpt-oss' gate is `gate * sigmoid(clamp_slope * gate)`.
        aux_coef: weight of the loss that balances the load of the experts, where it is trained with.
    """

    num: int
    per_token: int
    intermediate_size: int
    shared_size: int = 0
    shared_gate: bool = False
    scores: Literal["softmax", "sigmoid", "chosen"] = "softmax"
    correction: bool = False
    groups: int = 1
    groups_per_token: int = 1
    norm_weights: bool = True
    scale: float = 1.0
    fused: bool = False
    bias: bool = False
    clamp: float | None = None
    clamp_slope: float = 1.702
    aux_coef: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """What the layers of a decoder or an encoder are made of.

    Args:
        num_kv_heads: heads of keys and values; a divisor of `num_heads`.
        head_dim: features of one head.
        kinds: one a layer; empty: all are `Kind()`.
        causal: whether a token sees only what stands before it.
        rope, local_rope: rotary embeddings, of which a layer's kind names one.
        norm: `rms` (arXiv 1910.07467) or `layer` (arXiv 1607.06450).
        norm_bias: of a `layer` norm.
        norm_offset: what is added to a norm's stored scale (Gemma: 1).
        norm_at: where a branch is normalised: its input, its output before it is added, or the sum after.
        parallel: attention and MLP read the same input, and both are added to it.
        shared_norm: of a parallel layer: one norm for both branches.
        residual_multiplier: of each branch before it is added (Granite).
        fused_qkv: one kernel for queries, keys and values: one after the other (`parts`), or head by head (`heads`).
        qk_norm: queries and keys are normalised: each head with the same scale (`head`), with one of its own (`heads`),
            or all heads together (`all`).
        attention_scale: of the scores; None: 1 / sqrt(head_dim).
        attention_scale_by_layer: the scores of layer n, counted from 1, are divided by n too (a switch of GPT-2).
        attention_softcap: scores become `cap * tanh(scores / cap)` (Gemma 2, arXiv 2408.00118).
        attention_sinks: every head has a learned score to which weight may go that no token gets (gpt-oss).
        latent: of latent attention; `head_dim` is then that of queries and keys.
        activation: a name in `models.activation.ACTIVATION_FUNCTIONS`.
        gated: `down(act(gate(x)) * up(x))` (arXiv 2002.05202); otherwise `down(act(up(x)))`.
        fused_gate_up: gate and up are one kernel, one after the other.
        experts: of the layers whose kind is sparse.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kinds: tuple[Kind, ...] = ()
    causal: bool = True
    rope: Rope | None = Rope()
    local_rope: Rope | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    norm_offset: float = 0.0
    norm_at: tuple[Literal["input", "output", "sum"], ...] = ("input",)
    parallel: bool = False
    shared_norm: bool = False
    residual_multiplier: float = 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    fused_qkv: Literal["parts", "heads"] | None = None
    qk_norm: Literal["head", "heads", "all"] | None = None
    attention_scale: float | None = None
    attention_scale_by_layer: bool = False
    attention_softcap: float | None = None
    attention_sinks: bool = False
    latent: Latent | None = None
    activation: str = "silu"
    gated: bool = True
    mlp_bias: bool = False
    fused_gate_up: bool = False
    experts: Experts | None = None
    initializer_range: float = 0.02

    inputs = ("tokens",)  # what the model is called with, in this order
    activations = ACTIVATIONS  # what a remat policy can name

    @property
    def parts(self) -> tuple["LayersConfig", ...]:
        """What its layers are made of, tower by tower."""
        return (self,)

    @property
    def cached(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """[heads, features] of the two arrays that generation keeps of a token in a layer."""
        if self.latent is not None:
            return (1, self.latent.rank), (1, self.latent.rope_dim)
        return (self.num_kv_heads, self.head_dim), (self.num_kv_heads, self.head_dim)

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        """One a layer."""
        return self.kinds or (Kind(rope="rope" if self.rope is not None else None),) * self.num_layers

    def towers(self) -> dict[str, tuple[Kind, ...]]:
        """The paths at which layers stand, and of each the kinds of its layers."""
        return {"layers": self.all_kinds}

    def angles(self, positions: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Cosines and sines of int32 positions [batch, length], for each rope that a layer uses."""
        used = sorted({kind.rope for kind in self.all_kinds if kind.rope is not None})
        return {name: getattr(self, name).cos_sin(positions, self.head_dim) for name in used}
