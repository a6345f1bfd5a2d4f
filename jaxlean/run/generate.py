"""Text from a model: prompts in, completions out, with a key/value cache inside one jitted loop."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean import tree
from jaxlean.config import ModelSection
from jaxlean.data.chat import stop_tokens
from jaxlean.data.format import Chat, Example, Pair
from jaxlean.data.tokenize import Encoder
from jaxlean.errors import ConfigError, DataError
from jaxlean.hub.files import read_json
from jaxlean.hub.load import Model
from jaxlean.models.decoder import Cache
from jaxlean.xla.spread import fetch

# Prompts are padded to a multiple of this, so that few lengths are compiled.
_BUCKET = 32


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 takes the likeliest; else among `top_k` or the `top_p` mass.

    Raises:
        ConfigError: a value that cannot be.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("not a temperature", got=self.temperature, wanted="0 (greedy) or more")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ConfigError("top_k and top_p do nothing at temperature 0, which is greedy", fix="set a temperature")
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
    kv_cache_dtype: Literal["auto", "int8"] = "auto",
) -> list[list[int]]:
    """Complete each prompt.

    Prompts are sorted by length, padded on the left to a common length and decoded in batches of `batch_size`; a batch
    ends when all its rows have.

    Args:
        model: with adapters attached, if any.
        prompts: token ids; none empty.
        max_new_tokens: longest completion.
        stop: ids that end a completion; they are not returned.
        sampling: greedy by default. What is drawn for a prompt depends on the seed and on its place among the prompts,
            not on `batch_size`.
        batch_size: rows decoded at a time.
        kv_cache_dtype: what keys and values are held in (`models.key_value`); auto: the compute dtype.

    Returns:
        the completions' token ids, in the order of the prompts.

    Raises:
        DataError: an empty prompt, or a token id beyond the vocabulary.
        ConfigError: `max_new_tokens` is below 1.
    """
    if max_new_tokens < 1:
        raise ConfigError("max_new_tokens is below 1", got=max_new_tokens)
    for number, prompt in enumerate(prompts, 1):
        if not len(prompt):
            raise DataError("an empty prompt", where=f"prompt {number}")
        if max(prompt) >= model.config.vocab_size:
            raise DataError(
                "a token id beyond the model's vocabulary",
                where=f"prompt {number}",
                got=max(prompt),
                wanted=f"ids below {model.config.vocab_size}",
                fix="use the tokenizer that belongs to the model",
            )
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    outputs: list[list[int]] = [[] for _ in prompts]
    stops = jnp.asarray(sorted(set(stop)) or [-1], jnp.int32)
    key = jax.random.key(sampling.seed)
    how = replace(sampling, seed=0)  # only its numbers are compiled in: another seed compiles nothing anew
    batch_size = min(batch_size, len(prompts))
    kept_in = model.dtype if kv_cache_dtype == "auto" else jnp.dtype(kv_cache_dtype)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = -(-len(prompts[chosen[-1]]) // _BUCKET) * _BUCKET
        tokens = np.zeros((batch_size, length), np.int32)
        segments = np.zeros((batch_size, length), np.int32)
        for row, i in enumerate(chosen):
            tokens[row, length - len(prompts[i]) :] = prompts[i]
            segments[row, length - len(prompts[i]) :] = 1
        numbers = np.zeros(batch_size, np.uint32)
        numbers[: len(chosen)] = chosen
        new = _complete(
            model.graph, model.params, kept_in, max_new_tokens, how, jnp.asarray(tokens), jnp.asarray(segments),
            stops, jax.vmap(partial(jax.random.fold_in, key))(numbers),
        )  # fmt: skip
        for row, i in zip(fetch(new), chosen, strict=False):
            ended = np.flatnonzero(np.isin(row, np.asarray(stops)) | (row < 0))
            outputs[i] = row[: ended[0] if len(ended) else None].tolist()
    return outputs


def chat_template(section: ModelSection) -> str | None:
    """The text of `model.chat_template`, None where the config names none.

    Raises:
        ConfigError: the file is missing or not text.
    """
    if section.chat_template is None:
        return None
    try:
        return Path(section.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the chat template cannot be read", where=f"model.chat_template={section.chat_template}", got=error
        ) from None


def stop_ids(model: Model, tokenizer: Any = None) -> list[int]:
    """The tokens that end this model's turn.

    Args:
        model: its config and generation config may name some.
        tokenizer: default: the model's. Its EOS, and the end-of-turn token of its chat template: a base whose EOS is
            another one would otherwise never stop.
    """
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    ids: set[int | None] = {tokenizer.eos_token_id}
    try:
        ids.update(stop_tokens(tokenizer))
    except DataError:
        pass  # a template that cannot be taken apart tells no end of turn
    sources = [model.hf_config]
    if model.folder is not None and (model.folder / "generation_config.json").exists():
        sources.append(read_json(Path(model.folder) / "generation_config.json"))
    for source in sources:
        more = source.get("eos_token_id")
        ids.update(more if isinstance(more, list) else [more])
    return sorted(i for i in ids if i is not None)


def encode_prompt(model: Model, prompt: str, *, system: str | None = None, chat: bool = True) -> list[int]:
    """A user's message as token ids, exactly as training rows begin.

    Args:
        model: through its chat template, if it has one and `chat` is not refused.
        prompt: the message; of a model without a chat template, the text to go on with.
        system: message put before it; needs the chat template.

    Raises:
        ConfigError: an empty prompt, or a system message without a chat template.
        DataError: the template refuses the messages.
    """
    if not prompt.strip():
        raise ConfigError("an empty prompt", where="--prompt", fix="say something")
    encoder = Encoder(model.tokenizer, max_length=sys.maxsize)
    example: Example = Pair(prompt, "")
    if chat and encoder.template is not None:
        messages = [{"role": "system", "content": system}] if system else []
        example = Chat([*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": ""}])
    elif system:
        raise ConfigError(
            "a system message needs the chat template",
            where="--system",
            fix="put it into the prompt, or leave out --no-chat",
        )
    encoded = encoder.prompt(example, "--prompt")
    assert encoded is not None, "only plain text has no prompt"
    return encoded[0]


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
    keys: jax.Array,
) -> jax.Array:
    """int32 [batch, max_new_tokens], -1 where nothing was generated any more."""
    module = nnx.merge(graph, params)
    batch, length = tokens.shape
    cache = Cache.empty(module.config, batch, length + max_new_tokens, dtype)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    logits, cache = module.decode(tokens, positions, segments, cache)
    first = _choose(logits[:, -1], sampling, keys, jnp.zeros((), jnp.int32))
    out = jnp.full((batch, max_new_tokens), -1, jnp.int32).at[:, 0].set(first)
    # rows of padding only fill up the batch: they are done before they start
    done = jnp.isin(first, stops) | (segments.max(axis=1) == 0)

    def unfinished(carry: Any) -> jax.Array:
        step, _, _, done, _, _ = carry
        return (step < max_new_tokens) & ~done.all()

    def decode_one(carry: Any) -> Any:
        step, token, position, done, out, cache = carry
        here = position[:, None]
        logits, cache = nnx.merge(graph, params).decode(token[:, None], here, jnp.ones_like(here), cache)
        token = _choose(logits[:, -1], sampling, keys, step)
        out = out.at[:, step].set(jnp.where(done, -1, token))
        return step + 1, token, position + 1, done | jnp.isin(token, stops), out, cache

    start = (jnp.ones((), jnp.int32), first, positions[:, -1] + 1, done, out, cache)
    return jax.lax.while_loop(unfinished, decode_one, start)[4]


def _choose(logits: jax.Array, sampling: Sampling, keys: jax.Array, step: jax.Array) -> jax.Array:
    """float32 [batch, vocab], a key a row -> int32 [batch]."""
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
    draw = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))
    return draw(keys, logits).astype(jnp.int32)
