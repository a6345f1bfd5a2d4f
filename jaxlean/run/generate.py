"""Text from a model: prompts in, completions out, with a key/value cache inside one jitted loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean import tree
from jaxlean.errors import ConfigError, DataError
from jaxlean.hub.files import read_json
from jaxlean.hub.load import Model
from jaxlean.models.decoder import Cache

# Prompts are padded to a multiple of this, so that few lengths are compiled.
_BUCKET = 32


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the likeliest; else among `top_k` or the `top_p` mass."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError("temperature is negative", got=self.temperature, wanted="0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError("top_k is below 1", got=self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError("top_p is not a probability", got=self.top_p, wanted="above 0, at most 1")


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    sampling: Sampling = Sampling(),
    batch_size: int = 32,
) -> list[list[int]]:
    """Complete each prompt.

    Prompts are sorted by length, padded on the left to a common length and decoded in batches of `batch_size`; a batch
    ends when all its rows have.

    Args:
        model: with adapters attached, if any.
        prompts: token ids; none empty.
        max_new_tokens: longest completion.
        stop: ids that end a completion; they are not returned.
        sampling: greedy by default.
        batch_size: rows decoded at a time.

    Returns:
        the completions' token ids, in the order of the prompts.

    Raises:
        DataError: an empty prompt.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise DataError("an empty prompt", where=f"prompt {number}")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    outputs: list[list[int]] = [[] for _ in prompts]
    stops = jnp.asarray(sorted(set(stop)) or [-1], jnp.int32)
    batch_size = min(batch_size, len(prompts))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = -(-len(prompts[chosen[-1]]) // _BUCKET) * _BUCKET
        tokens = np.zeros((batch_size, length), np.int32)
        segments = np.zeros((batch_size, length), np.int32)
        for row, i in enumerate(chosen):
            tokens[row, length - len(prompts[i]) :] = prompts[i]
            segments[row, length - len(prompts[i]) :] = 1
        new = _complete(
            model.graph, model.params, model.dtype, max_new_tokens, sampling, jnp.asarray(tokens), jnp.asarray(segments),
            stops, jax.random.fold_in(jax.random.key(sampling.seed), start),
        )  # fmt: skip
        for row, i in zip(np.asarray(new), chosen, strict=False):
            ended = np.flatnonzero(np.isin(row, np.asarray(stops)) | (row < 0))
            outputs[i] = row[: ended[0] if len(ended) else None].tolist()
    return outputs


def stop_ids(model: Model) -> list[int]:
    """The tokens that end this model's turn: the tokenizer's, and those its generation config adds."""
    ids = {model.tokenizer.eos_token_id}
    sources = [model.hf_config]
    if model.folder is not None and (model.folder / "generation_config.json").exists():
        sources.append(read_json(Path(model.folder) / "generation_config.json"))
    for source in sources:
        more = source.get("eos_token_id")
        ids.update(more if isinstance(more, list) else [more])
    return sorted(i for i in ids if i is not None)


def encode_prompt(model: Model, prompt: str, *, system: str | None = None, chat: bool = True) -> list[int]:
    """A user's message as the model expects it: through its chat template, if it has one and `chat` is not refused."""
    tokenizer = model.tokenizer
    if chat and tokenizer.chat_template:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer(prompt)["input_ids"]


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _complete(
    graph: nnx.GraphDef,
    params: tree.Tree,
    dtype: jnp.dtype,
    max_new_tokens: int,
    sampling: Sampling,
    tokens: jax.Array,
    segments: jax.Array,
    stops: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """int32 [batch, max_new_tokens], -1 where nothing was generated any more."""
    module = nnx.merge(graph, params)
    batch, length = tokens.shape
    cache = Cache.empty(module.config, batch, length + max_new_tokens, dtype)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    logits, cache = module.decode(tokens, positions, segments, cache)
    first = _choose(logits[:, -1], sampling, jax.random.fold_in(key, 0))
    out = jnp.full((batch, max_new_tokens), -1, jnp.int32).at[:, 0].set(first)
    # rows of padding only fill up the batch: they are done before they start
    done = jnp.isin(first, stops) | (segments.max(axis=1) == 0)

    def unfinished(carry):
        step, _, _, done, _, _ = carry
        return (step < max_new_tokens) & ~done.all()

    def decode_one(carry):
        step, token, position, done, out, cache = carry
        here = position[:, None]
        logits, cache = nnx.merge(graph, params).decode(token[:, None], here, jnp.ones_like(here), cache)
        token = _choose(logits[:, -1], sampling, jax.random.fold_in(key, step))
        out = out.at[:, step].set(jnp.where(done, -1, token))
        return step + 1, token, position + 1, done | jnp.isin(token, stops), out, cache

    start = (jnp.ones((), jnp.int32), first, positions[:, -1] + 1, done, out, cache)
    return jax.lax.while_loop(unfinished, decode_one, start)[4]


def _choose(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """float32 [batch, vocab] -> int32 [batch]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        lowest = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if sampling.top_p is not None:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        # a token stays while the mass before it is below top_p, so the likeliest always does
        before = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1) - jax.nn.softmax(ranked, axis=-1)
        lowest = jnp.min(jnp.where(before < sampling.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
