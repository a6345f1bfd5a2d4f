"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one small vector a token makes its keys and values.

What generation caches is that vector, and the part of the key that turns with the position, which all heads share.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean.models.attention import Backend, Slots, attention
from jaxlean.models.config import Kind, LayersConfig
from jaxlean.models.cpu import keep
from jaxlean.models.key_value import KeyValue
from jaxlean.models.layout import ALONE, Layout
from jaxlean.models.linear import Dropout, Linear
from jaxlean.models.norm import RMSNorm
from jaxlean.models.projection import project
from jaxlean.models.rope import rotate
from jaxlean.models.self_attention import Angles

_EPS = 1e-6  # of the norms of the latents, whatever the config's


class LatentAttention(nnx.Module):
    """Attention whose keys and values (and perhaps queries) go through a narrow vector.

    Args:
        config: its shape; `config.latent` is there.
        kind: of the layer.
        dtype: what matrices are multiplied in.
        rngs: draws the kernels.
    """

    def __init__(self, config: LayersConfig, kind: Kind, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        latent, hidden, heads = config.latent, config.hidden_size, config.num_heads
        assert latent is not None

        def linear(dim_in: int, dim_out: int, bias: bool = False) -> Linear:
            return Linear(dim_in, dim_out, bias=bias, std=config.initializer_range, dtype=dtype, rngs=rngs)

        if latent.query_rank is None:
            self.query = linear(hidden, heads * config.head_dim)
        else:
            self.query_a = linear(hidden, latent.query_rank, latent.bias)
            self.query_norm = RMSNorm(latent.query_rank, eps=_EPS)
            self.query_b = linear(latent.query_rank, heads * config.head_dim)
        self.key_value_a = linear(hidden, latent.rank + latent.rope_dim, latent.bias)
        self.key_value_norm = RMSNorm(latent.rank, eps=_EPS)
        self.key_value_b = linear(latent.rank, heads * (config.head_dim - latent.rope_dim + latent.value_dim))
        self.out = linear(heads * latent.value_dim, hidden, config.out_bias)
        self.config = config
        self.kind = kind
        self.backend: Backend = "plain"
        self.layout: Layout = ALONE

    def __call__(
        self,
        x: jax.Array,
        angles: Angles,
        slots: Slots,
        cache: KeyValue | None,
        dropout: Dropout | None,
        number: jax.Array,
    ) -> tuple[jax.Array, KeyValue | None]:
        """As `Attention.__call__`; cached are latents [.., 1, slots, rank] and keys [.., 1, slots, rope]."""
        config, layout, latent = self.config, self.layout, self.config.latent
        assert latent is not None
        # places of their own beside those of the MLP
        drop = [dropout.fold(i) if dropout is not None else None for i in range(10, 15)]
        cos_sin = angles["rope"]
        interleaved = config.rope is not None and config.rope.interleaved
        plain_dim = config.head_dim - latent.rope_dim

        if latent.query_rank is None:
            query, narrow = project(x, (self.query, self.key_value_a), drop[:2])
        else:
            narrow_query, narrow = project(x, (self.query_a, self.key_value_a), drop[:2])
            (query,) = project(self.query_norm(narrow_query), (self.query_b,), drop[2:3])
        query = query.reshape(*x.shape[:2], config.num_heads, config.head_dim)
        turned = rotate(query[..., plain_dim:], *cos_sin, interleaved=interleaved)
        query = keep(layout.constrain(jnp.concatenate([query[..., :plain_dim], turned], axis=-1), "query"), "query")
        latents = self.key_value_norm(narrow[..., : latent.rank])
        shared = rotate(narrow[:, :, None, latent.rank :], *cos_sin, interleaved=interleaved)
        if cache is not None:
            first = slots.query_index[0]
            cache = cache.put(latents[:, :, None], shared, first)
            narrow, shared = cache.get(x.dtype)
            latents = narrow[:, :, 0]

        (expanded,) = project(latents, (self.key_value_b,), drop[3:4])
        expanded = expanded.reshape(*expanded.shape[:2], config.num_heads, plain_dim + latent.value_dim)
        value = keep(layout.constrain(expanded[..., plain_dim:], "value"), "value")
        for_all = jnp.broadcast_to(shared, (*expanded.shape[:3], latent.rope_dim))
        key = keep(layout.constrain(jnp.concatenate([expanded[..., :plain_dim], for_all], axis=-1), "key"), "key")

        query, key, value = map(layout.unfold, (query, key, value))
        backend = self.backend if cache is None else "plain"
        if backend in ("cudnn", "splash"):  # they want all heads of one width
            value = jnp.pad(value, [(0, 0)] * 3 + [(0, config.head_dim - latent.value_dim)])
        context = attention(
            query, key, value, slots, window=self.kind.window, causal=config.causal, scale=config.attention_scale,
            softcap=config.attention_softcap, backend=backend, layout=layout,
        )[..., : latent.value_dim]  # fmt: skip
        context = layout.constrain(layout.fold(context), "context").reshape(*x.shape[:2], -1)
        mixed = layout.constrain(project(context, (self.out,), drop[4:])[0], "attention_out")
        return keep(mixed, "attention_out"), cache
