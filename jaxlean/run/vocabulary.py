"""New tokens of a run: which terms, the model and tokenizer with them, and where their vectors start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxlean.adapt import vocabulary, warm_start
from jaxlean.config import RunConfig
from jaxlean.data import term_tokens, terms
from jaxlean.data.cooccurrence import token_vectors
from jaxlean.data.term_tokens import Saving
from jaxlean.data.terms import Term
from jaxlean.data.texts import training_texts
from jaxlean.data.word_vectors import Vectors, read_vectors
from jaxlean.errors import ConfigError
from jaxlean.hub.families import sees
from jaxlean.hub.files import locate, read_json
from jaxlean.hub.load import Model, load, load_tokenizer
from jaxlean.hub.vocabulary import leaves_of, resized, with_rows
from jaxlean.run.generate import chat_template
from jaxlean.xla.spread import fetch

# Old tokens that focus may choose among.
_FEWEST_NEIGHBOURS = 10
_SHOWN = 15


@dataclass(frozen=True)
class Found:
    """Which terms become tokens.

    Args:
        terms: of them, those that were found in the data.
        num: how many become tokens.
        known: terms that were named and are one token already.
        starting: terms that were named and left out, since they would cut a word that is a token.
        saving: over the training data; None where that was not read.
    """

    num: int
    terms: list[Term] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    starting: list[str] = field(default_factory=list)
    saving: Saving | None = None

    @property
    def unseen(self) -> list[str]:
        """The new tokens that no training text is cut into, and whose rows learn nothing."""
        return [term.text for term in self.terms if not term.times] if self.saving is not None else []

    def __rich__(self) -> Group:
        lines = [f"new tokens: {self.num:,}" + (f"; the training texts: {self.saving}" if self.saving else "")]
        for what, names in (
            ("one token already", self.known),
            ("left out, since they start words that are tokens and would cut those", self.starting),
            ("never in the training texts as they are cut, so that nothing of them is learned", self.unseen),
        ):
            if names:
                lines.append(f"{what}: {_some(names)}")
        parts: list[Any] = [Text("\n".join(lines))]
        if self.terms:
            table = Table(title="what saves most", title_justify="left")
            for name in ("term", "times", "pieces", "tokens saved"):
                table.add_column(name, justify="left" if name == "term" else "right")
            for term in self.terms[:_SHOWN]:
                pieces = "not known" if term.unknown else str(term.pieces)
                table.add_row(Text(term.text), f"{term.times:,}", pieces, f"{term.saved:,}")
            parts.append(table)
        return Group(*parts)


def with_new_tokens(
    config: RunConfig, tokenizer: Any = None, *, counted: bool = False
) -> tuple[RunConfig, Found | None]:
    """The config with its new tokens as a list of terms, and what is to be said of them; None where there are none.

    Args:
        config: resolved.
        tokenizer: without new tokens; default: the model's.
        counted: whether terms that were named are counted in the training data, which `auto` reads anyway; not in data
            that are streamed.

    Raises:
        ConfigError: no term is left, or what `terms.checked` and `term_tokens.grown` refuse.
        DataError: `auto` or `counted`, and the training data cannot be read.
    """
    asked = config.model.new_tokens
    if asked is None:
        return config, None
    if tokenizer is None:
        _check_model(config)
    if config.model.new_tokens_init == "procrustes" and config.model.new_tokens_vectors is None:
        raise ConfigError(
            "model.new_tokens_init: procrustes needs vectors of words", where="model.new_tokens_vectors",
            fix="name a file of them, or a sentence encoder; or model.new_tokens_init=mean",
        )  # fmt: skip
    tokenizer = tokenizer if tokenizer is not None else _tokenizer(config)
    if asked == "auto":
        names = _in_data(config, tokenizer)
        named = terms.Checked(names, [], [])
    else:
        where = "model.new_tokens" if isinstance(asked, list) else asked
        named = terms.checked(
            tokenizer, asked if isinstance(asked, list) else terms.read_terms(Path(asked)), where=where
        )
        names = named.kept
    model = config.model.model_copy(update={"new_tokens": names})
    found = Found(len(names), [], named.known, named.starting)
    if asked == "auto" or (counted and config.data.train and not config.data.streaming):
        after = term_tokens.grown(tokenizer, names)
        saving = term_tokens.saving(training_texts(config, tokenizer), tokenizer, after)
        cut = [terms.counted(tokenizer, name, times) for name, times in zip(names, saving.times, strict=True)]
        cut.sort(key=lambda term: (-term.saved, -term.times, term.text))
        found = replace(found, terms=cut, saving=saving)
    return config.model_copy(update={"model": model}), found


def _in_data(config: RunConfig, tokenizer: Any) -> list[str]:
    wanted = config.model
    found = terms.find(
        training_texts(config, tokenizer), tokenizer, num=wanted.num_new_tokens,
        min_count=wanted.new_tokens_min_count, min_length=wanted.new_tokens_min_length,
    )  # fmt: skip
    if not found:
        raise ConfigError(
            "model.new_tokens: auto found no word that would save a token",
            wanted=f"words of {wanted.new_tokens_min_length} letters or more, {wanted.new_tokens_min_count} times or "
            "more, in two pieces or more",
            fix="lower model.new_tokens_min_count, or leave out model.new_tokens",
        )
    return [term.text for term in found]


def _check_model(config: RunConfig) -> None:
    """Refuse new tokens of a model that has none, or that knows nothing yet."""
    wanted = config.model
    if wanted.architecture is not None:
        raise ConfigError(
            "model.new_tokens are for a trained model", fix="a tokenizer that has them, where all is learned from zero"
        )
    if wanted.path is None:
        raise ConfigError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    settings = read_json(locate(wanted.path, revision=wanted.revision, weights=False) / "config.json")
    if sees(settings):
        raise ConfigError(
            "new tokens need a model of text, and this one sees images", where=wanted.path,
            got=settings.get("model_type"), fix="leave out model.new_tokens",
        )  # fmt: skip


def _tokenizer(config: RunConfig) -> Any:
    assert config.model.path is not None, "checked"
    return _with_template(config, load_tokenizer(config.model.tokenizer or config.model.path))


def _with_template(config: RunConfig, tokenizer: Any) -> Any:
    """A tokenizer with the config's chat template, if it names one: no new token may stand in that."""
    template = chat_template(config.model)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def grown(
    config: RunConfig, model: Model, *, shapes: bool = False, say: Callable[[str], None] = lambda line: None
) -> Model:
    """The model with the config's new tokens: in its tokenizer, with room in its tables, and with rows beside those.

    Args:
        config: its `model.new_tokens` is a list (`with_new_tokens`).
        model: the base.
        shapes: of its parameters only those are there: nothing is computed.
        say: prints a line: how many start otherwise than asked.

    Raises:
        UserError: a model without a table of tokens, vectors that do not fit.
    """
    asked = config.model.new_tokens
    if asked is None:
        return model
    assert isinstance(asked, list), "with_new_tokens makes a list"
    model = resized(model, 0)  # one that could not grow says so now
    tokenizer = _with_template(config, model.tokenizer)
    before, num_before = tokenizer, len(tokenizer)
    names = terms.checked(before, asked).kept
    after = term_tokens.grown(before, names)
    ids = np.arange(num_before, num_before + len(names), dtype=np.int32)
    rows: dict[str, Any] = {}
    if shapes:
        hidden = model.config.hidden_size
        rows = {leaf: jax.ShapeDtypeStruct((len(ids), hidden), np.float32) for leaf in leaves_of(model)}
    else:
        rows = _starts(config, model, before, after, names, say)
    _say_whole(model, len(after), say)
    model = with_rows(resized(model, len(after)), ids, rows)
    model.tokenizer = after
    return model


def _say_whole(model: Model, size: int, say: Callable[[str], None]) -> None:
    """Say what number of tokens would keep a table split that lies split on its mesh, and will not."""
    for axis, num in vocabulary.split_by(model.params).items():
        more = -size % num
        if size > model.config.vocab_size and more:
            say(
                f"new tokens: {axis}={num} does not divide a table of {size:,} tokens, which will be whole on each "
                f"device; {more:,} new tokens more, or {num - more:,} fewer, would keep it split"
            )


# ---- where vectors start


def _starts(
    config: RunConfig, model: Model, before: Any, after: Any, names: Sequence[str], say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Each leaf's rows, [new, hidden]."""
    how = config.model.new_tokens_init
    num = min(len(before), model.config.vocab_size)
    if how == "random":
        found = {}
        for number, leaf in enumerate(leaves_of(model)):
            mean, std = (fetch(x) for x in vocabulary.spread_of(model.params, leaf, num))
            found[leaf] = warm_start.random(mean, std, len(names), config.seed + 1000 * number)
        return found
    cut = [term_tokens.known_pieces(before, name) for name in names]
    own = {leaf: _mean(model, leaf, cut, num) for leaf in leaves_of(model)}
    strange = [name for name, pieces in zip(names, cut, strict=True) if not pieces]
    if how == "mean":
        if strange:
            say(f"new tokens: no piece of {len(strange):,} is known; they start at the mean of all: {_some(strange)}")
        return own
    # the old tokens that have a vector, their vectors, and those of the new tokens; NaN where there is none
    if config.model.new_tokens_vectors is not None:
        shared, old, new = _external(config, before, names)
    else:
        shared, old, new = _in_company(config, before, after, len(names))
    known = ~np.isnan(new).any(axis=1)
    if not known.any():
        raise ConfigError(
            "no new token has a vector", where=config.model.new_tokens_vectors or "the training data",
            fix="vectors that have these words, or model.new_tokens_init=mean",
        )  # fmt: skip
    if how == "focus" and len(shared) < _FEWEST_NEIGHBOURS:
        raise ConfigError(
            "too few old tokens have a vector to choose neighbours among", got=len(shared),
            wanted=f"{_FEWEST_NEIGHBOURS} or more", fix="other vectors, or model.new_tokens_init=mean",
        )  # fmt: skip
    if not known.all():
        others = [name for name, has_one in zip(names, known, strict=True) if not has_one]
        say(
            f"new tokens: {how} starts {known.sum():,} of {len(names):,}; {len(others):,} have no vector, and start at "
            f"the mean of their pieces: {_some(others)}"
        )
    for leaf, rows in own.items():
        table = fetch(vocabulary.rows_of(model.params, leaf, shared))
        made = (
            warm_start.focus(table, old, new[known])
            if how == "focus"
            else warm_start.procrustes(old, table)(new[known])
        )
        rows[known] = made
    return own


def _mean(model: Model, leaf: str, cut: Sequence[Sequence[int]], num: int) -> np.ndarray:
    """Of each term's pieces; of all `num` old tokens where it has none."""
    used = sorted({piece for own in cut for piece in own})
    at = {piece: i for i, piece in enumerate(used)}
    rows = fetch(vocabulary.rows_of(model.params, leaf, np.asarray(used, np.int32)))
    if not all(cut):
        rows = np.concatenate([rows, fetch(vocabulary.spread_of(model.params, leaf, num)[0])[None]])
    return warm_start.mean_of_pieces(rows, [[at[piece] for piece in own] or [len(used)] for own in cut])


def _in_company(config: RunConfig, before: Any, after: Any, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors by co-occurrence in the training texts, as the grown tokenizer cuts them."""
    texts = training_texts(config, before)
    rows = (after(text, add_special_tokens=False)["input_ids"] for text in texts)
    vectors, counts = token_vectors(rows, len(after))
    first, special = len(before), set(before.all_special_ids)
    enough = (counts >= config.model.new_tokens_min_count) & (np.abs(vectors).max(axis=1) > 0)
    shared = np.asarray([i for i in np.flatnonzero(enough[:first]) if i not in special], np.int32)
    new = vectors[first : first + num].copy()
    new[~enough[first : first + num]] = np.nan
    return shared, vectors[shared], new


def _external(config: RunConfig, before: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors from elsewhere, of tokens that are words and of terms; that of several words is the mean of theirs."""
    words = terms.words_of(before)
    parts = {name: name.split() for name in names}
    wanted = sorted({*words.values(), *names, *(word for own in parts.values() for word in own)})
    found = _vectors(str(config.model.new_tokens_vectors), wanted)
    vectors = {word: row for word, row in found.items() if row.any()}  # zeros stand for words that nobody knows
    shared = [i for i, word in words.items() if word in vectors]
    dims = len(next(iter(vectors.values()))) if vectors else 1
    new = np.full((len(names), dims), np.nan, np.float32)
    for row, name in zip(new, names, strict=True):
        own = [vectors[name]] if name in vectors else [vectors[word] for word in parts[name] if word in vectors]
        if own and (name in vectors or len(own) == len(parts[name])):
            row[:] = np.mean(own, axis=0)
    old = np.stack([vectors[words[i]] for i in shared]) if shared else np.zeros((0, dims), np.float32)
    return np.asarray(shared, np.int32), old, new


def _vectors(source: str, wanted: Sequence[str]) -> Vectors:
    if Path(source).is_file() or Path(source).suffix in (".vec", ".txt", ".npz"):
        return read_vectors(Path(source), wanted)
    encoder = load(source, task="embed")
    found = encoder.encode(list(wanted), batch_size=256)
    if not np.isfinite(found).all():
        raise ConfigError("the encoder gives vectors that are not of finite numbers", where=source)
    return dict(zip(wanted, found, strict=True))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
