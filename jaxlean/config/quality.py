"""The bounds of `jaxlean curate`'s quality rules; which paper each is from stands in `data/quality.py`."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from jaxlean.config.section import Fraction, Section


def _bound(description: str) -> Any:
    return Field(None, description=description + " Default: the profile's.")


class QualitySection(Section):
    """Rules that text of people passes, and lists, menus, spam and broken markup do not."""

    profile: Literal["rows", "gopher", "c4"] = Field(
        "rows",
        description="Bounds that are not set here. rows: for examples of any length and language, drops only what is "
        "broken; gopher: pages of English, as the paper has them; c4: pages that C4 drops, but no line and no repeated "
        "span is taken out of a row that stays, and its list of bad words is yours to name (forbidden).",
    )
    min_words: NonNegativeInt | None = _bound("Words.")
    max_words: NonNegativeInt | None = _bound("Words.")
    min_sentences: NonNegativeInt | None = _bound("Sentences.")
    min_sentences_of_lines: NonNegativeInt | None = _bound(
        "Sentences in lines that C4 keeps: that end in a full stop, !, ? or a quotation mark, have 5 words, and name "
        "neither javascript nor cookies and policies."
    )
    min_mean_word_length: NonNegativeFloat | None = _bound("Characters of a word, on average.")
    max_mean_word_length: NonNegativeFloat | None = _bound("Characters of a word, on average.")
    max_hash_ratio: NonNegativeFloat | None = _bound("# signs a word.")
    max_ellipsis_ratio: NonNegativeFloat | None = _bound("Ellipses a word.")
    max_bullet_lines: Fraction | None = _bound("Share of the lines that begin with a bullet.")
    max_ellipsis_lines: Fraction | None = _bound("Share of the lines that end in an ellipsis.")
    min_alphabetic_words: Fraction | None = _bound("Share of the words that hold a letter.")
    min_stop_words: NonNegativeInt | None = _bound(
        "Of the words the, be, to, of, and, that, have, with: how many occur."
    )
    min_terminal_lines: Fraction | None = _bound(
        "Share of the lines that end in a full stop, !, ? or a quotation mark. Ours: C4 takes the other lines out."
    )
    max_duplicate_lines: Fraction | None = _bound("Share of the lines that stood there before.")
    max_duplicate_paragraphs: Fraction | None = _bound("Share of the paragraphs that stood there before.")
    max_duplicate_line_characters: Fraction | None = _bound("Share of the characters, in such lines.")
    max_duplicate_paragraph_characters: Fraction | None = _bound("Share of the characters, in such paragraphs.")
    max_top_2gram: Fraction | None = _bound("Share of the characters, in the most frequent pair of words.")
    max_top_3gram: Fraction | None = _bound("The same of three words.")
    max_top_4gram: Fraction | None = _bound("The same of four.")
    max_duplicate_5gram: Fraction | None = _bound("Share of the characters, in runs of 5 words that stand there twice.")
    max_duplicate_6gram: Fraction | None = _bound("The same of 6 words.")
    max_duplicate_7gram: Fraction | None = _bound("The same of 7.")
    max_duplicate_8gram: Fraction | None = _bound("The same of 8.")
    max_duplicate_9gram: Fraction | None = _bound("The same of 9.")
    max_duplicate_10gram: Fraction | None = _bound("The same of 10.")
    forbidden: list[str] | None = _bound("Texts that must not occur, in whatever case; []: none.")
    languages: list[str] | None = Field(
        None, description="ISO codes of the languages that stay: [en, de]. Needs py3langid. Default: all."
    )
    min_language_probability: Fraction = Field(0.5, description="languages: of the likeliest one.")
