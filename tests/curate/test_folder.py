from pathlib import Path

import pytest

from jaxlean.curate import curate as story
from jaxlean.curate.curate import curate
from jaxlean.errors import DataError, RunError


@pytest.fixture
def made(job, texts):
    return job([{"text": text} for text in texts], ["exact_duplicates", "near_duplicates"])


@pytest.fixture
def cut_short(made, monkeypatch):
    """A job that was killed before anything was written."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(story, "write", killed)
        curate(made)
    return made


def refused(config, **how):
    with pytest.raises(RunError) as error:
        curate(config, **how)
    return str(error.value)


def test_a_folder_in_use_is_refused_gone_on_with_or_replaced(made):
    told = curate(made)
    assert "already holds a curated dataset" in refused(made)
    assert "exclude each other" in refused(made, resume=True, overwrite=True)
    assert curate(made, resume=True) == told
    made.curate.steps = made.curate.steps[:1]
    assert curate(made, overwrite=True)["kept"] == 4


def test_resumed_with_another_setting_names_it(cut_short):
    cut_short.curate.steps[1].near_duplicates.threshold = 0.5
    message = refused(cut_short, resume=True)
    assert "--resume with another curate.steps.1.near_duplicates.threshold" in message
    assert "got:    0.5\n  wanted: 0.7" in message


def test_resumed_with_other_data_names_the_file(cut_short):
    with Path(cut_short.data.train[0].path).open("a") as file:
        file.write('{"text": "one more"}\n')
    assert "the file has changed since the job was started" in refused(cut_short, resume=True)


def test_how_it_is_computed_may_change(cut_short):
    cut_short.curate.processes, cut_short.curate.examples = 2, 1
    assert curate(cut_short, resume=True)["kept"] == 3


def test_what_others_wrote_is_left_alone(made, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.parquet").write_text("mine")
    assert "holds what no `jaxlean curate` wrote" in refused(made, overwrite=True)
    (tmp_path / "out" / "train.parquet").unlink()
    (tmp_path / "out" / "config.yaml").write_text("")
    assert "a training run" in refused(made)


def test_a_folder_that_cannot_be_written(made, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert "output_dir is a file" in refused(made)


def test_what_is_read_is_not_overwritten(made, tmp_path):
    made.output_dir = str(tmp_path)
    assert "data.train lies in the output folder" in refused(made)


def test_after_a_mistake_that_was_found_while_reading_the_same_command_may_be_given_again(job, texts):
    rows = [{"text": text} for text in texts]
    with pytest.raises(DataError, match="stand in the held-out data"):
        curate(job(rows, ["quality"], rows[:1]))
    assert curate(job(rows, [{"leakage": {"action": "drop"}}], rows[:1]))["kept"] == 4
