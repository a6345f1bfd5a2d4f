"""What `jaxlean config` prints, as a person sees it."""

import pytest

from jaxlean.config.keys import every
from jaxlean.config.show import print_keys


@pytest.fixture
def printed(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")

    def call(wanted: str | None = None) -> str:
        print_keys(wanted)
        return capsys.readouterr().out

    return call


def test_one_key(printed) -> None:
    out = printed("train.remat")
    for word in ("train.remat", "none", "Activations to recompute", "also: gradient_checkpointing"):
        assert word in out
    assert "train.optim" not in out


def test_a_section(printed) -> None:
    out = printed("lora")
    assert out.count("lora.") > 8
    for word in ("(section or null", "with PEFT's names", "also: lora_r, lora_rank"):
        assert word in out


def test_all_of_them_are_there_and_the_keys_of_a_section_once(printed) -> None:
    out = printed()
    missing = [key.path for key in every() if key.path.count("[]") == 0 and key.path not in out]
    assert missing == []
    assert "data.train[].limit" in out
    assert "data.eval[].limit" not in out
    assert "Keys: those of data.train." in out


def test_what_is_markup_elsewhere_is_text_here(printed) -> None:
    assert "[anchor, positive]" in " ".join(printed("data.text_column").split())
    assert "data.train[].path" in printed("data.train")
