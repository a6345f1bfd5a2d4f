"""The run's folder: one run's alone, replaced or resumed only when asked, never half there."""

import os
import shutil
import types

import pytest

from jaxlean.config import build, load
from jaxlean.errors import ConfigError, RunError
from jaxlean.run import folder as module
from jaxlean.run.folder import check_shared, check_space, claim
from jaxlean.run.peers import Peers


def config(**changes):
    values = {"model": {"path": "base"}, "data": {"train": "rows.jsonl"}, "train": {"max_steps": 5}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return build(values)


def finished(folder):
    """A folder as a finished run leaves it, with a file of the user's beside."""
    claim(folder, config(), resume=False, overwrite=False)
    for name in ("checkpoints/5", "adapter", "model", "tensorboard"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("old")
    for name in ("metrics.jsonl", "summary.json", "wandb_id", "base_losses.npz", "notes.txt"):
        (folder / name).write_text("old")
    return folder


def contents(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_a_new_folder_gets_the_resolved_config(tmp_path):
    folder = tmp_path / "runs" / "new"
    claim(folder, config(), resume=False, overwrite=False)
    assert os.listdir(folder) == ["config.yaml"]
    assert load(folder / "config.yaml") == config()


def test_an_empty_folder_or_one_with_other_files_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, config(), resume=False, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "notes.txt"]


def test_a_dry_claim_writes_nothing(tmp_path):
    claim(tmp_path / "new", config(), resume=False, overwrite=False, dry=True)
    assert os.listdir(tmp_path) == []
    before = contents(finished(tmp_path / "run"))
    claim(tmp_path / "run", config(seed=1), resume=False, overwrite=True, dry=True)
    assert contents(tmp_path / "run") == before


def test_a_folder_with_a_run_needs_a_word(tmp_path):
    folder = finished(tmp_path / "run")
    before = contents(folder)
    with pytest.raises(RunError) as raised:
        claim(folder, config(), resume=False, overwrite=False)
    for words in ("already holds a run", str(folder), "--resume", "--overwrite", "output_dir="):
        assert words in str(raised.value)
    with pytest.raises(RunError, match="exclude each other"):
        claim(folder, config(), resume=True, overwrite=True)
    assert contents(folder) == before


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path):
    folder = finished(tmp_path / "run")
    claim(folder, config(seed=7), resume=False, overwrite=True)
    assert contents(folder) == ["config.yaml", "notes.txt"]
    assert load(folder / "config.yaml").seed == 7


def test_overwrite_removes_a_link_not_what_it_points_to(tmp_path):
    folder = finished(tmp_path / "run")
    shutil.move(folder / "checkpoints", tmp_path / "elsewhere")
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    claim(folder, config(), resume=False, overwrite=True)
    assert not (folder / "checkpoints").exists()
    assert (tmp_path / "elsewhere" / "5" / "file").exists()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *(("model__path", "model"), ("model__tokenizer", "model"), ("data__train", "adapter/file")),
        *(("data__eval", "model"), ("lora__init_from", "adapter")),
    ],
)
def test_overwrite_spares_what_the_new_run_reads(tmp_path, key, name):
    folder = finished(tmp_path / "run")
    before = contents(folder)
    with pytest.raises(RunError, match="--overwrite would remove what") as raised:
        claim(folder, config(**{key: str(folder / name)}), resume=False, overwrite=True, dry=True)
    assert key.replace("__", ".") in str(raised.value)
    assert str(folder / name) in str(raised.value)
    assert contents(folder) == before
    # An input beside the results is no hindrance.
    claim(folder, config(**{key: str(folder / "notes.txt")}), resume=False, overwrite=True, dry=True)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_somebody_elses_model_folder_is_never_taken_for_a_run(tmp_path, flags):
    (tmp_path / "model").mkdir()
    with pytest.raises(RunError, match="but no run") as raised:
        claim(tmp_path, config(), **({"resume": False, "overwrite": False} | flags))
    assert "model" in str(raised.value)
    assert os.listdir(tmp_path) == ["model"]


def test_resume_goes_on_and_takes_over_what_may_change(tmp_path):
    folder = finished(tmp_path / "run")
    before = contents(folder)
    changes = {
        "train__learning_rate": 1e-5,
        "train__save_steps": 3,
        "train__logging_steps": 1,
        "report": {"wandb": False, "run_name": "again"},
        "cost__usd_per_hour": 2.0,
        "mesh__fsdp": 2,
        "train__per_device_train_batch_size": 4,
        "train__remat": "full",
        "distributed__enabled": False,
        "eval__mode": "none",  # its numbers are the same whoever measures, and where nobody does
        "eval__evaluators": 2,
    }
    claim(folder, config(**changes), resume=True, overwrite=False)
    assert contents(folder) == before
    found = load(folder / "config.yaml")
    assert found.train.save_steps == 3
    assert found.distributed.enabled, "not of the run, but of this process"


def test_resume_of_nothing_is_a_new_run(tmp_path):
    claim(tmp_path / "run", config(), resume=True, overwrite=False)
    assert os.listdir(tmp_path / "run") == ["config.yaml"]


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"seed": 3}, "seed", ("3", "0, as the run was started")),
        ({"lora": None}, "lora", ("None",)),
        ({"lora__r": 2}, "lora.r", ("2", "16, as the run was started")),
        ({"data__train": "other.jsonl"}, "data.train", ("other.jsonl", "rows.jsonl")),
        ({"train__max_steps": 9}, "train.max_steps", ("9", "5")),
        ({"train__optim": "lion"}, "train.optim", ("lion", "adamw")),
        ({"eval__exact_match": True}, "eval.exact_match", ("True", "False")),
    ],
)
def test_resume_with_another_config_is_refused(tmp_path, change, key, words):
    folder = finished(tmp_path / "run")
    with pytest.raises(RunError) as raised:
        claim(folder, config(**change), resume=True, overwrite=False)
    for word in (f"--resume with another {key}", str(folder), "--overwrite", *words):
        assert word in str(raised.value)
    assert load(folder / "config.yaml") == config()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("train: {max_steps: 5", RunError, "cannot be read"),
        ("", RunError, "cannot be read"),
        ("wrong: 1", ConfigError, "wrong"),
    ],
)
def test_resume_of_a_run_whose_config_was_spoilt(tmp_path, text, error, words):
    folder = finished(tmp_path / "run")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(error, match=words) as raised:
        claim(folder, config(), resume=True, overwrite=False)
    assert str(folder / "config.yaml") in str(raised.value)


@pytest.mark.parametrize("moment", ["removing", "writing", "replacing"])
def test_killed_while_claiming_the_folder_is_still_some_run(tmp_path, monkeypatch, moment):
    folder = finished(tmp_path / "run")

    class Killed(BaseException):
        pass

    def killed(*args, **options):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        where, name = {
            "removing": (module, "remove"),
            "writing": (module.settings, "dump"),
            "replacing": (module.os, "replace"),
        }[moment]
        patched.setattr(where, name, killed)
        claim(folder, config(seed=7), resume=False, overwrite=True)
    assert load(folder / "config.yaml") == config()
    with pytest.raises(RunError, match="already holds a run"):
        claim(folder, config(seed=7), resume=False, overwrite=False)
    claim(folder, config(seed=7), resume=False, overwrite=True)
    assert contents(folder) == ["config.yaml", "notes.txt"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place, words in (("file", "output_dir is a file"), ("file/under", "lies under a file")):
        with pytest.raises(RunError, match=words) as raised:
            claim(tmp_path / place, config(), resume=False, overwrite=True, dry=True)
        assert str(tmp_path / "file") in str(raised.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_without_permission_is_told_before_anything_is_done(tmp_path, monkeypatch):
    # root, as in a container, may write anywhere: so the system is asked in its stead
    monkeypatch.setattr(module.os, "access", lambda place, mode: False)
    with pytest.raises(RunError, match="cannot be written") as raised:
        claim(tmp_path / "deep" / "run", config(), resume=False, overwrite=False, dry=True)
    assert str(tmp_path) in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_after_all(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(module.Path, "mkdir", refuse)
    with pytest.raises(RunError, match="cannot be written"):
        claim(tmp_path / "run", config(), resume=False, overwrite=False)


def test_space_for_the_checkpoints_kept_the_one_being_written_and_the_result(tmp_path, monkeypatch):
    asked = []

    def usage(place):
        asked.append(place)
        return types.SimpleNamespace(free=40 * 10**6)

    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    check_space(tmp_path / "not" / "there", 10 * 10**6, keep=2)
    assert asked == [tmp_path]
    with pytest.raises(RunError) as raised:
        check_space(tmp_path, 10 * 10**6 + 1, keep=2)
    for words in ("no disk space", str(tmp_path), "40 MB free", "4 x 10.0 MB", "train.save_total_limit"):
        assert words in str(raised.value)


class Second(Peers):
    """The second of two processes, which the first has told the name of its mark."""

    def __init__(self, name):
        super().__init__()
        self.index, self.num, self.name = 1, 2, name

    def share(self, value=None):
        return self.name


def test_a_folder_that_not_every_process_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SEEN_SECONDS", 0.3)
    with pytest.raises(RunError) as raised:
        check_shared(tmp_path, Second(".seen-1"))
    for words in ("does not see the output folder", f"process 1: {tmp_path}", "a file system that all share"):
        assert words in str(raised.value)
    (tmp_path / ".seen-1").touch()
    check_shared(tmp_path, Second(".seen-1"))
    check_shared(tmp_path / "alone", Peers())
