import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jaxlean.config import load
from jaxlean.errors import DataError
from jaxlean.run.inspect import inspect


@pytest.fixture
def shown(tiny_yaml: Path) -> Any:
    def show(*overrides: str) -> str:
        out = io.StringIO()
        inspect(load(tiny_yaml, list(overrides)), 2, console=Console(file=out, width=160, highlight=False))
        return out.getvalue()

    return show


def test_phases_and_both_ends_of_the_order(shown: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"row {i}" + " card" * i, "completion": "yes", "grade": (7 * i) % 10} for i in range(10)]
    file = tmp_path / "graded.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    graded = (
        f"data.train={file}",
        f"data.eval={file}",
        "data.curriculum.difficulty=column",
        "data.curriculum.column=grade",
    )
    text = shown(*graded, "data.packing=false", "train.max_steps=null", "data.curriculum.phases=5")
    assert "curriculum: column 'grade', easy first; 20% available at first" in text
    assert "2 steps" not in text
    assert "; 5 steps" in text
    assert [line[:12] for line in text.splitlines() if line.startswith(("easiest", "hardest"))] == [
        "easiest (0):", "easiest (1):", "hardest (9):", "hardest (8):"
    ]  # fmt: skip
    easiest = next(line for line in text.splitlines() if line.startswith("easiest (1)"))
    assert "row 3 card card card" in easiest
    table = [line for line in text.splitlines() if " rows (" in line and "%" in line]
    assert len(table) == 5
    assert "10 rows (100%)" in table[-1]
    assert "column 'grade', hard first" in shown(*graded, "data.curriculum.order=hard_first")


def test_what_is_not_known_yet_and_what_cannot_be(shown: Any, tmp_path: Path, tiny_rows: Path) -> None:
    assert "measures before it trains" in shown("data.curriculum=loss")
    assert "curriculum" not in shown()
    long = shown("data.curriculum=length", "data.max_length=10")
    assert "the run would stop there" in long
    assert "available" not in long, "there would be no run to show"
    column = ("data.curriculum.difficulty=column", "data.curriculum.column=hardnes")
    with pytest.raises(
        DataError, match=r"(?s)data.curriculum.column: there is no column 'hardnes'.*prompt, completion"
    ):
        shown(*column)
