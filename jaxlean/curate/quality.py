"""`quality`: rows that are broken as text, by the rules of Gopher and C4."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlean.config.quality import QualitySection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.work import Arrays, Work
from jaxlean.data.quality import FORBIDDEN, RULES, bounds, broken
from jaxlean.errors import ConfigError

# Reasons beside the rules', which come first.
_MORE = ("forbidden", "language")


def quality(corpus: Corpus, alive: np.ndarray, settings: QualitySection, work: Work) -> Found:
    """The rows that break a rule, each with the first rule and the number that broke it.

    Raises:
        ConfigError: `languages` without py3langid.
    """
    if settings.languages is not None:
        _identifier(tuple(settings.languages))
    names = (*RULES, *_MORE)
    rows, codes, values = [], [], []
    for numbers, found in work.shards(_judge, corpus, alive, settings):
        bad = np.flatnonzero(found["code"] >= 0)
        rows.append(numbers[bad])
        codes.append(found["code"][bad])
        values.append(found["value"][bad])
    all_codes = np.concatenate(codes)
    used = sorted(set(all_codes.tolist()))
    asked = bounds(settings.profile, settings.model_dump(include=set(RULES)))
    return Found(
        np.concatenate(rows),
        np.searchsorted(used, all_codes).astype(np.int16),
        tuple(names[code] for code in used),
        value=np.concatenate(values),
        notes={name: f"{bound:g} ({RULES[name].source})" for name, bound in asked.items()},
    )


def _judge(corpus: Corpus, numbers: np.ndarray, settings: QualitySection) -> Arrays:
    """`code` [n] int16: the rule that is broken, -1 for none; `value` [n] float32: what was measured."""
    names = (*RULES, *_MORE)
    asked = bounds(settings.profile, settings.model_dump(include=set(RULES)))
    phrases = FORBIDDEN[settings.profile] if settings.forbidden is None else settings.forbidden
    forbidden = [phrase.lower() for phrase in phrases]
    language = _identifier(tuple(settings.languages)) if settings.languages is not None else None
    code, value = np.full(len(numbers), -1, np.int16), np.full(len(numbers), np.nan, np.float32)
    for i, words in enumerate(corpus.words(numbers)):
        found = broken(words.text, asked, forbidden)
        if found is None and language is not None:
            name, probability = language(words.text)
            if name not in (settings.languages or ()) or probability < settings.min_language_probability:
                found = "language", probability
        if found is not None:
            code[i], value[i] = names.index(found[0]), found[1]
    return {"code": code, "value": value}


@functools.cache
def _identifier(languages: Sequence[str]) -> Callable[[str], tuple[str, float]]:
    """A function of a text that gives its language and how likely it is."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ConfigError(
            "curate.steps: quality.languages needs py3langid", got=error, fix="pip install 'jaxlean[curate]'"
        ) from None
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(languages) - set(identifier.labels))
    if unknown:
        raise ConfigError(
            "quality.languages: an unknown language",
            got=", ".join(unknown),
            wanted=f"ISO 639-1 codes, of {', '.join(sorted(identifier.labels))}",
        )
    return lambda text: tuple(identifier.classify(text))
