"""What is written here loads in transformers as the model that it was: every golden checkpoint, its tensors and config.

Needs the [parity] extra (torch); without it these tests are skipped. `families/` compares the files themselves.
"""

import json
from pathlib import Path

import pytest

from jaxlean.hub.write import write_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

GOLDEN = Path(__file__).parents[1] / "golden"


def theirs(folder):
    """The model, and what transformers says of its tensors."""
    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    return model, {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}


@pytest.mark.parametrize("name", sorted(file.parent.name for file in GOLDEN.glob("*/config.json")))
def test_round_trip(name, loaded, tmp_path):
    write_model(loaded(name), tmp_path / name)
    (before, _), (after, info) = theirs(GOLDEN / name), theirs(tmp_path / name)
    assert not any(info.values()), info
    want, got = before.state_dict(), after.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    settings = [{**model.config.to_dict(), "_name_or_path": None} for model in (before, after)]
    assert settings[0] == settings[1]
