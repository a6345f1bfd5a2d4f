"""The list of families."""

import json
from pathlib import Path

from typer.testing import CliRunner

from jaxlean.cli.app import app
from jaxlean.hub.families import FAMILIES
from jaxlean.run.models import entries

GOLDEN = Path(__file__).parents[1] / "golden"


def test_every_family_is_listed_once_with_what_it_is():
    found = entries()
    assert sorted(entry.model_type for entry in found) == sorted(FAMILIES)
    assert all(entry.about.endswith(".") and entry.tasks for entry in found)
    kinds = [(entry.tasks, entry.takes) for entry in found]
    assert kinds[0] == (("generate",), "text")
    by_name = {entry.model_type: entry for entry in found}
    assert by_name["bert"].tasks == ("classify", "tag", "embed")
    assert by_name["vit"].takes == "images"
    assert by_name["gemma2"].about.startswith("Gemma 2 (arXiv 2408.00118)")
    assert by_name["mobilenet_v1"].about.startswith("MobileNet v1 (arXiv 1704.04861)")
    assert len({entry.about for entry in found}) == len(found)


def test_every_family_has_three_golden_checkpoints():
    found = [json.loads(file.read_text())["model_type"] for file in GOLDEN.glob("*/config.json")]
    assert {name: found.count(name) >= 3 for name in FAMILIES} == dict.fromkeys(FAMILIES, True)


def test_the_verb_prints_them():
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    for name in FAMILIES:
        assert name in result.stdout
    assert "CONTRIBUTING.md" in result.stdout
    assert "…" not in result.stdout  # a long address is folded, not cut
