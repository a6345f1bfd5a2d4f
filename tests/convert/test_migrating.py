"""configs/MIGRATING.md: what is committed is what the tables give."""

from pathlib import Path

from jaxlean.config.keys import every
from jaxlean.convert.detect import FORMATS
from jaxlean.convert.migrating import markdown

FILE = Path(__file__).parents[2] / "configs" / "MIGRATING.md"


def rows() -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in markdown().splitlines() if line.startswith("| `")]


def test_the_committed_page_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == markdown(), "jaxlean convert --table > configs/MIGRATING.md"


def test_the_page_names_keys_that_exist() -> None:
    ours = {key.path for key in every()}
    first = [row[0].partition("`")[2].partition("`")[0] for row in rows()]
    assert len(first) > 40
    theirs = {key for form in FORMATS for row in form.rows for key in row.keys}
    assert [key for key in first if key not in ours and key not in theirs] == []


def test_the_keys_that_people_look_for_first_are_there() -> None:
    page = markdown()
    for words in (
        "`model.quantization` = none | `load_in_8bit` (true: int8), `load_in_4bit` (true: nf4)",
        "| `data.max_length` = 1024 | `sequence_len` = 512 | `cutoff_len` = 2048 |",
        "`micro_batch_size` = 1",
        "| `neftune_noise_alpha` |",
    ):
        assert words in page
    assert len(page.splitlines()) < 80  # a page
