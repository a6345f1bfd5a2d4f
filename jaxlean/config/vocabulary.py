"""New tokens for the words of a domain: which, and where their vectors start."""

from typing import Literal

from pydantic import Field, PositiveInt

from jaxlean.config.section import Section


class VocabularySettings(Section):
    """A part of `model`: terms that become tokens, whose rows train beside the frozen embedding."""

    new_tokens: list[str] | str | None = Field(
        None,
        description="Terms that become tokens of their own: a list, a file (one a line, or a JSON list), or auto: the "
        "words of the training data that cost the most tokens beyond one each, count x (pieces - 1). Where a word's "
        "token begins with a space, a new one does too, and is not found at the start of a text, line or quotation.",
    )
    new_tokens_init: Literal["mean", "focus", "procrustes", "random"] = Field(
        "mean",
        description="Where their vectors start. mean: of the pieces they were cut into. focus: of old tokens that are "
        "used alike (arXiv 2305.14481). procrustes: new_tokens_vectors, turned into the model's space. random: noise.",
    )
    new_tokens_vectors: str | None = Field(
        None,
        description="Vectors of words: a text file (fastText, word2vec, GloVe), .npz with words and vectors, or a "
        "sentence encoder (folder or id). procrustes needs them; focus without them takes co-occurrence in the data.",
    )
    num_new_tokens: PositiveInt = Field(500, description="new_tokens: auto: how many at most.")
    new_tokens_min_count: PositiveInt = Field(
        5,
        description="new_tokens: auto: occurrences that a word must have. Of focus without vectors, also for a list: "
        "occurrences that a token, old or new, must have.",
    )
    new_tokens_min_length: PositiveInt = Field(4, description="new_tokens: auto: letters that a word must have.")
