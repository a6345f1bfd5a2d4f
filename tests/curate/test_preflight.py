import pytest

from jaxlean.curate.corpus import Corpus
from jaxlean.curate.curate import curate
from jaxlean.curate.preflight import preflight
from jaxlean.curate.steps import planned
from jaxlean.errors import ConfigError, DataError, UserError

ROWS = [{"text": "a", "quality": 1.0}, {"text": "b", "quality": 2.0}]


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        ({"keep": {"count": 1, "by": "qualty"}}, ConfigError, "keep.by is neither a score"),
        ({"keep": {"count": 1, "by": "loss"}}, ConfigError, "scores: importance; columns: text, quality"),
        ({"keep": {"mix": {"other.jsonl": 1}}}, ConfigError, "keep.mix names a source that is not in data.train"),
        ({"keep": {"count": 1, "diversity": "labels"}}, ConfigError, "diversity: labels is for task: classify"),
        ({"keep": {"count": 1, "diversity": "k_center"}}, ConfigError, "whose vectors? No model is named"),
        ({"semantic_duplicates": {"vectors": {"column": "vec"}}}, DataError, "vectors.column: there is no column"),
        ({"semantic_duplicates": {"vectors": {"model": "/no/such"}}}, DataError, "no such file or folder"),
        ({"loss": {"adapter": "/no/such"}}, ConfigError, "the adapter's folder is not there"),
        ({"learnability": {"run": {"adapter": "/no/such"}}}, ConfigError, "the adapter's folder is not there"),
        ({"leakage": {}}, ConfigError, "no data.eval"),
        ({"loss": {}}, ConfigError, "loss is what rows are to a model, and none is named"),
        ({"el2n": {}}, ConfigError, "el2n is what rows are to a model, and none is named"),
    ],
)
def test_what_a_late_step_asks_for_is_looked_at_before_the_first(job, tmp_path, step, error, message):
    made = job(ROWS, [{"importance": {"target": str(tmp_path / "rows.jsonl")}}, step])
    with pytest.raises(error) as said:
        curate(made)
    assert message in str(said.value)
    assert not (tmp_path / "out").exists()


def test_a_target_is_read_as_the_rows_are(job, lines, tmp_path):
    for target in (tmp_path / "none.jsonl", lines("other.jsonl", [{"txt": "a"}])):
        with pytest.raises(UserError) as said:
            curate(job(ROWS, [{"importance": {"target": str(target)}}]))
        assert str(target) in str(said.value)
        assert not (tmp_path / "out").exists()


def test_what_is_right_passes(job, tmp_path):
    target = {"importance": {"target": str(tmp_path / "rows.jsonl")}}
    for step in (
        {"keep": {"count": 1, "by": "importance"}},
        {"keep": {"count": 1, "by": "quality", "mix": {str(tmp_path / "rows.jsonl"): 1}}},
        {"keep": {"count": 1, "vectors": {"column": "not read"}}},
        {"semantic_duplicates": {"vectors": {"model": "some/id"}}},
    ):
        made = job(ROWS, [target, step])
        preflight(made, planned(made), Corpus(made))
