from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.curate.ifd import SCORES


@pytest.mark.usefixtures("small_machine")
def test_a_row_without_a_prompt_has_one(corpus_of: Any, run_step: Any, tiny_base: Path) -> None:
    """And one with a prompt has another: `test_scoring.py` says which."""
    values = {"model": {"path": str(tiny_base), "dtype": "float32"}, "data": {"max_length": 48}}
    plain = run_step(corpus_of([{"text": "red house in the street"}] * 2, **values), {"ifd": None})
    np.testing.assert_allclose(plain.scores["ifd"], 1.0, rtol=1e-5)
    rows = [{"prompt": "red house", "completion": "a street"}] * 2
    asked = run_step(corpus_of(rows, **values), {"ifd": None}, folder="work/02")
    assert (np.abs(asked.scores["ifd"] - 1) > 1e-3).all()
    assert len(asked.rows) == 0
    assert set(asked.scores) == set(SCORES)
