import sys

import pytest

from jaxlean.errors import ConfigError


def test_the_first_rule_that_is_broken_and_its_number(curated, texts):
    rows = [{"text": texts[0]}, {"text": "again\n" * 9}, {"text": "y" * 50}, {"text": "see lorem ipsum here"}]
    told, kept, dropped = curated(rows, ["quality"])
    assert [row["text"] for row in kept] == [texts[0]]
    assert [(row["jaxlean_reason"], round(row["jaxlean_value"], 2)) for row in dropped] == [
        ("max_duplicate_lines", 0.89),
        ("max_mean_word_length", 50),
        ("forbidden", 1),
    ]
    assert told["steps"][1]["notes"]["max_words"] == "100000 (Gopher, A.1.1)"


def test_bounds_are_settings(curated, texts):
    _, kept, dropped = curated(
        [{"text": text} for text in texts], [{"quality": {"min_words": 11, "forbidden": ["BEES"]}}]
    )
    assert len(kept) == 3
    assert {row["jaxlean_reason"] for row in dropped} == {"min_words", "forbidden"}


def test_no_text_is_forbidden_if_none_is_named(curated):
    rows = [{"text": "see lorem ipsum here"}, {"text": "another text"}]
    assert len(curated(rows, [{"quality": {"forbidden": []}}])[1]) == 2


def test_languages_need_a_library(curated, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ConfigError, match="needs py3langid"):
        curated([{"text": texts[0]}], [{"quality": {"languages": ["en"]}}])


def test_languages(curated, texts):
    pytest.importorskip("py3langid")
    german = "Der Zug verlaesst den Bahnhof um sieben Uhr am Morgen, und niemand hat den Fluss je so hoch gesehen."
    _, kept, dropped = curated([{"text": texts[0]}, {"text": german}], [{"quality": {"languages": ["en"]}}])
    assert [row["text"] for row in kept] == [texts[0]]
    assert dropped[0]["jaxlean_reason"] == "language"


def test_a_language_that_is_none(curated, texts):
    pytest.importorskip("py3langid")
    with pytest.raises(ConfigError, match="an unknown language\n  got:    xx"):
        curated([{"text": texts[0]}], [{"quality": {"languages": ["xx"]}}])
