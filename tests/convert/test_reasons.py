"""What tables say in words: every key and every verb of ours that they name is one."""

import re

import pytest

from jaxlean.cli.app import app
from jaxlean.config import RunConfig
from jaxlean.config.keys import every
from jaxlean.convert import reasons
from jaxlean.convert.detect import FORMATS

OURS = {key.path.replace("[]", "").replace("{}", "") for key in every()}
SECTIONS = "|".join(name for name in RunConfig.model_fields if name not in ("seed", "task"))
NOTES = [(form.name, row.keys[0], row.note) for form in FORMATS for row in form.rows if row.note]
NOTES += [("reasons", name, text) for name, text in vars(reasons).items() if name.isupper()]


@pytest.mark.parametrize(("form", "key", "note"), NOTES)
def test_every_key_that_a_note_names_is_there(form, key, note) -> None:
    for path in re.findall(rf"\b((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)", note):
        if not path.endswith((".json", ".jsonl")):
            assert path in OURS, f"{form}: {key}"


def test_every_verb_that_a_note_names_is_there() -> None:
    import jaxlean.cli.entry  # noqa: F401  all verbs

    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    named = {verb for _, _, note in NOTES for verb in re.findall(r"jaxlean ([a-z]+)", note)}
    assert {"finetune", "merge", "curate", "plan"} <= named
    assert named - verbs <= {"measures", "has", "lists"}, "the rest is prose"
