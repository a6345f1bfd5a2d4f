"""Attention by the kernels of others: cuDNN's on NVIDIA GPUs, jax's own Pallas kernel on TPUs."""

from typing import Any, Literal

import jax
import jax.numpy as jnp


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """`jax.nn.dot_product_attention`, whose cuDNN form never holds the scores.

    Args:
        query: [batch, length, heads, head_dim], bfloat16.
        key, value: [batch, length, kv_heads, head_dim].
        visible: bool [batch, length, length]. cuDNN has no notion of packed segments: it is handed this as a bias, one
            for all heads.
        implementation: `xla` computes the same from the same arguments on any device.
    """
    return jax.nn.dot_product_attention(
        query, key, value, mask=visible[:, None], scale=scale, implementation=implementation
    )


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    window: int | None,
    softcap: float | None,
    scale: float,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`jax.experimental.pallas.ops.tpu.splash_attention`, which skips blocks that nothing can see.

    Its output and log-sum-exp carry the name `context`, so that a remat policy can keep them.

    Args:
        query: [batch, length, heads, head_dim]; 128 divides length and head_dim.
        key, value: [batch, length, kv_heads, head_dim].
        segments: int32 [batch, length].
        window: of all layers alike: the kernel is made for it.
        interpret: run the kernel's Python instead (on any device, slowly): for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    shape = (length, length)
    mask: Any = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    with jax.ensure_compile_time_eval():
        attend = kernel.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * (heads // kv_heads)), attn_logits_soft_cap=softcap,
            residual_checkpoint_name="context", interpret=interpret,
        )  # fmt: skip
    grouped = (query.astype(jnp.float32) * scale).astype(query.dtype)
    grouped = grouped.reshape(batch, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    own = kernel.SegmentIds(q=segments, kv=segments)
    # over the batch, and within it over the key/value heads
    each = jax.vmap(jax.vmap(attend, in_axes=(0, 0, 0, None)), in_axes=(0, 0, 0, 0))
    context = each(grouped, key.swapaxes(1, 2), value.swapaxes(1, 2), own)
    return context.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)
