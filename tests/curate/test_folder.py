import os
from pathlib import Path

import pytest

from jaxlean.curate import curate as story
from jaxlean.curate.curate import curate
from jaxlean.errors import DataError, RunError


@pytest.fixture
def made(job, texts):
    return job([{"text": text} for text in texts], ["exact_duplicates", "near_duplicates"])


@pytest.fixture
def killed_at_the_end(monkeypatch):
    """Starts a job, and kills it before anything is written."""

    def killed(*_):
        raise KeyboardInterrupt

    def start(config):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(story, "write", killed)
            curate(config)

    return start


@pytest.fixture
def cut_short(made, killed_at_the_end):
    """A job that was killed before anything was written."""
    killed_at_the_end(made)
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


@pytest.mark.parametrize("ended", [False, True])
def test_what_is_read_besides_the_rows_must_be_the_same_as_well(job, killed_at_the_end, tmp_path, ended):
    """Held-out rows, a target, the files of a folder, a model, an adapter: each is named when it has changed."""
    folder = tmp_path / "many"
    (folder / "deep").mkdir(parents=True)
    for file in (folder / "a.jsonl", folder / "deep" / "b.jsonl", tmp_path / "target.jsonl"):
        file.write_text('{"text": "some words"}\n{"text": "other words"}\n')
    (tmp_path / "base" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "base" / "1_Pooling" / "config.json").write_text("{}")
    made = job(
        [], [{"importance": {"target": str(tmp_path / "target.jsonl")}}], [{"text": "held out"}],
        data={"train": str(folder)}, model={"path": str(tmp_path / "base")},
    )  # fmt: skip
    if ended:
        curate(made)
    else:
        killed_at_the_end(made)
    for file in (
        folder / "deep" / "b.jsonl", tmp_path / "heldout.jsonl", tmp_path / "target.jsonl",
        tmp_path / "base" / "1_Pooling" / "config.json",
    ):  # fmt: skip
        before = file.stat()
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        message = refused(made, resume=True)
        assert "--resume with other data: the file has changed" in message
        assert str(file) in message
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "c.jsonl").write_text('{"text": "new"}\n')
    assert "the file is new" in refused(made, resume=True)
    (folder / "c.jsonl").unlink()
    assert curate(made, resume=True)["rows"] == 4


def test_after_a_late_mistake_resume_goes_on_with_the_mended_step(job):
    rows = [{"text": f"row {i}", "score": i} for i in range(6)]
    steps = ["exact_duplicates", {"keep": {"by": "score", "at_least": 7}}]
    made = job(rows, steps)
    with pytest.raises(DataError, match="no row is left within the limits"):
        curate(made)
    made.curate.steps[0].exact_duplicates.across_labels = True
    assert "another curate.steps.0.exact_duplicates.across_labels" in refused(made, resume=True)
    made.curate.steps[0].exact_duplicates.across_labels = False
    made.curate.steps[1].keep.at_least = 4
    assert curate(made, resume=True)["kept"] == 2
    made.curate.steps = made.curate.steps[:1]
    assert "another curate.steps" in refused(made, resume=True)


def test_killed_while_it_claims_its_folder(made, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("jaxlean.curate.folder.write_text", killed)
        curate(made)
    assert curate(made, resume=True)["kept"] == 3


def test_killed_before_it_has_cleaned_up(made, monkeypatch, tmp_path):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(story.shutil, "rmtree", killed)
        curate(made)
    assert (tmp_path / "out" / "work").is_dir()
    assert curate(made, resume=True)["kept"] == 3
    assert not (tmp_path / "out" / "work").exists()


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
    (tmp_path / "deep").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "deep" / "rows.jsonl")
    made.data.train[0].path = str(tmp_path / "deep")
    assert "data.train lies in the output folder" in refused(made)


def test_nor_does_what_is_written_lie_where_rows_are_read(made, tmp_path):
    """A worker that lists the folder later would find more files, and number the rows otherwise."""
    made.data.train[0].path = str(tmp_path)
    assert "the output folder lies in a folder of data.train" in refused(made)
    assert "the output folder lies in a folder of data.train" in refused(made, overwrite=True)
    assert not (tmp_path / "out").exists()


def test_after_a_mistake_that_was_found_while_reading_the_same_command_may_be_given_again(job, texts):
    rows = [{"text": text} for text in texts]
    with pytest.raises(DataError, match="stand in the held-out data"):
        curate(job(rows, ["quality"], rows[:1]))
    assert curate(job(rows, [{"leakage": {"action": "drop"}}], rows[:1]))["kept"] == 4
