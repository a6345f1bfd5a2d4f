"""Rotary position embeddings (arXiv 2104.09864) and the ways to stretch them to longer contexts.

The scaled variants follow `transformers.modeling_rope_utils`, whose configs we read: `linear`, `dynamic` (NTK),
`llama3`, `yarn` (arXiv 2309.00071) and `longrope` (arXiv 2402.13753).
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class Rope:
    """How positions become angles. Field names are those of Hugging Face's `rope_parameters`.

    Args:
        dim: how many features of each head turn, its first ones; 0: all.
        interleaved: pairs are neighbours (2i, 2i + 1), as in the paper, and not halves (i, i + dim/2).
    """

    rope_type: RopeType = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    # dynamic: the length from which the base grows; the others: the context of pre-training.
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    # multiplies cos and sin (yarn, longrope)
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    dim: int = 0
    interleaved: bool = False

    def cos_sin(self, positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines of the angles.

        Args:
            positions: int32 [batch, length], each token's place in its sequence.
            head_dim: features of one head.

        Returns:
            two float32 [batch, length, dim / 2].
        """
        angles = positions[..., None].astype(jnp.float32) * self._inverse_frequencies(positions, self.dim or head_dim)
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor

    def _inverse_frequencies(self, positions: jax.Array, dim: int) -> jax.Array:
        """float32 [dim / 2]; for `dynamic` and `longrope` they depend on the longest position in the batch."""
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        plain = np.float32(1.0) / np.power(np.float32(self.rope_theta), exponents)
        match self.rope_type:
            case "default":
                return jnp.asarray(plain)
            case "linear":
                return jnp.asarray(plain / np.float32(self.factor))
            case "llama3":
                return jnp.asarray(self._llama3(plain))
            case "yarn":
                return jnp.asarray(self._yarn(plain, dim))
            case "dynamic":
                original = self.original_max_position_embeddings
                length = jnp.maximum(positions.max() + 1, original).astype(jnp.float32)
                growth = (self.factor * length / original) - (self.factor - 1.0)
                base = self.rope_theta * growth ** (dim / (dim - 2))
                return 1.0 / jnp.power(base, jnp.asarray(exponents))
            case "longrope":
                is_long = positions.max() + 1 > self.original_max_position_embeddings
                long = plain / np.asarray(self.long_factor, np.float32)
                short = plain / np.asarray(self.short_factor, np.float32)
                return jnp.where(is_long, jnp.asarray(long), jnp.asarray(short))

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        # Short waves stay, long ones are stretched by `factor`, those between are blended.
        context = self.original_max_position_embeddings
        waves = 2 * math.pi / plain
        blend = (context / waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - blend) * plain / self.factor + blend * plain
        stretched = np.where(waves > context / self.low_freq_factor, plain / self.factor, blended)
        return np.where(waves < context / self.high_freq_factor, plain, stretched).astype(np.float32)

    def _yarn(self, plain: np.ndarray, dim: int) -> np.ndarray:
        # `low` and `high` are the dimensions that turn beta_fast and beta_slow times over the original context.
        def turning(rotations: float) -> float:
            wave = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return dim * math.log(wave) / (2 * math.log(self.rope_theta))

        low, high = turning(self.beta_fast), turning(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
        return (plain / self.factor * ramp + plain * (1 - ramp)).astype(np.float32)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Turn each pair of features by its angle, in float32; those beyond the angles' stay as they are.

    Args:
        x: [batch, length, heads, head_dim].
        cos, sin: float32 [batch, length, dim / 2].
        interleaved: see `Rope`.

    Returns:
        [batch, length, heads, head_dim] in the dtype of `x`.
    """
    dim = 2 * cos.shape[-1]
    turning = x[..., :dim].astype(jnp.float32)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
        pairs = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        turned = pairs.reshape(turning.shape).astype(x.dtype)
    else:
        first, second = jnp.split(turning, 2, axis=-1)
        turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return turned if dim == x.shape[-1] else jnp.concatenate([turned, x[..., dim:]], axis=-1)
