"""TrainingArguments: every field of the installed transformers is known."""

import ast
import importlib.util
from pathlib import Path

import pytest

from jaxlean.convert import trainer
from jaxlean.convert.detect import FORMATS


def fields() -> list[str]:
    """Of transformers' TrainingArguments, which cannot be imported without torch."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    module = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    (found,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return [
        node.target.id
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_"
    ]


@pytest.mark.parametrize("name", ["trl", "llama-factory"])
def test_every_field_of_training_arguments_is_known(name) -> None:
    form = next(each for each in FORMATS if each.name == name)
    every = fields()
    assert len(every) > 100
    assert [field for field in every if form.row(field) is None] == []


def test_rows_can_be_left_out() -> None:
    left = {key for row in trainer.without("learning_rate", "bf16") for key in row.keys}
    assert not {"learning_rate", "bf16"} & left
    assert "seed" in left
