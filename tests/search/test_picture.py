"""The picture is drawn of whatever there is."""

import pytest
from PIL import Image

from jaxlean.config import SearchSection
from jaxlean.search.picture import draw


def row(number, state, steps, rungs, **values):
    return {"number": number, "state": state, "steps": steps, "rungs": rungs, "values": values}


ROWS = [
    row(0, "complete", 27, {"3": 2.0, "9": 1.0}, loss=0.5, usd=0.02, bytes=300),
    row(1, "pruned", 3, {"3": 3.0}),
    row(2, "complete", 27, {"3": 2.5, "9": 0.9}, loss=0.7, usd=0.01, bytes=100),
    row(3, "refused", None, {}),
]


@pytest.mark.parametrize("objectives", [["loss"], ["loss", "usd"], ["loss", "usd", "bytes"]])
@pytest.mark.parametrize("rows", [ROWS, ROWS[1:2]], ids=["some", "none_at_its_end"])
def test_it_is_drawn(tmp_path, objectives, rows):
    best = [r["number"] for r in rows if r["number"] in (0, 2)]
    draw(rows, SearchSection(objectives=objectives), best, tmp_path / "search.png")
    with Image.open(tmp_path / "search.png") as picture:
        assert picture.size == (1080, 540)
        assert len(picture.convert("RGB").getcolors(2**20)) > 3, "there is something to see"
