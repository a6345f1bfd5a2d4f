"""The picture, and the files that none can be written to."""

import pytest

from jaxlean.compress.sensitivity import Alone
from jaxlean.errors import ConfigError, RunError
from jaxlean.run import sensitivity

ROWS = [
    Alone(layer, module, share, 0.01 * (layer + 1) * share)
    for layer in (0, 1, 2)
    for module, shares in (("mlp.down", (0.25, 0.5)), ("attention.out", (1 / 3, 2 / 3)))
    for share in shares
]


def test_a_panel_for_each_share(tmp_path):
    pytest.importorskip("matplotlib")
    sensitivity.draw(ROWS, tmp_path / "a.svg", method="structured")
    sensitivity.draw([Alone(0, "layer", 1.0, 0.2), Alone(1, "layer", 1.0, 0.1)], tmp_path / "b.png", method="layers")
    assert (tmp_path / "a.svg").read_text().count('id="axes_') == 2
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_files_that_cannot_be(tmp_path, monkeypatch):
    for file, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "a.png", "a folder that is not there"),
        (tmp_path / "a.gif", "of a kind that is not drawn"),
    ):
        with pytest.raises(RunError, match=words):
            sensitivity.check_file(file)
    monkeypatch.setattr(sensitivity.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs matplotlib"):
        sensitivity.check_file(tmp_path / "a.png")
