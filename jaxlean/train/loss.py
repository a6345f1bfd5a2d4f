"""Next-token cross entropy, summed over the tokens that carry loss."""

import jax
import jax.numpy as jnp


def next_token_loss(logits: jax.Array, tokens: jax.Array, loss_mask: jax.Array) -> jax.Array:
    """Sum of the cross entropies of the tokens to be predicted.

    A sum, not a mean: microbatches differ in tokens, and only sums over them add up to what one big batch gives.

    Args:
        logits: float32 [batch, length, vocab]; those at position t - 1 predict token t.
        tokens: int32 [batch, length].
        loss_mask: bool [batch, length], True where the token is to be predicted.

    Returns:
        float32 [].
    """
    logits, targets, mask = logits[:, :-1], tokens[:, 1:], loss_mask[:, 1:]
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.where(mask, losses, 0.0).sum()
