"""Folders as runs leave them: whole, cut off, going on, damaged; and folders that are no run."""

import json
import shutil
from datetime import UTC, datetime

import pytest

from jaxlean.errors import RunError
from jaxlean.report.read import number, read
from jaxlean.run.folder import SEARCH
from jaxlean.run.lock import FolderLock


def one(folder):
    (found,) = read([folder])
    return found


def test_a_whole_run(made, told):
    run = one(made("a", steps=40, receipt=told))
    assert (run.name, run.status, run.steps) == ("a", "completed", 40)
    assert run.ended == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert [each["step"] for each in run.lines] == list(range(2, 41, 2))
    assert [each["step"] for each in run.evaluations] == [0, 20, 40]
    assert run.evaluations[0].keys() == {"step", "loss"}
    assert run.setting("data.train")[0]["path"] == "train.jsonl"
    assert run.setting("data.nothing.at_all") is None
    assert run.receipt == told
    assert run.unread == []


def test_a_run_without_a_summary_is_unfinished_and_its_last_line_counts(made):
    run = one(made("a", summary=None))
    assert run.status == "unfinished"
    assert run.steps == 40
    assert run.last("usd") == pytest.approx(18 / 3600)
    assert run.last("train_loss", "loss") == pytest.approx(run.lines[-1]["loss"])
    assert run.ended is not None, "when it wrote its last line"


def test_a_run_that_goes_on_after_its_summary_is_no_completed_one(made):
    folder = made("a", summary={"status": "preempted", "steps": 20}, steps=40)
    run = one(folder)
    assert run.status == "unfinished"
    assert "train_loss" not in run.summary
    assert run.summary["eval_before"]["loss"] == 5.25, "which another process does not measure again"
    assert one(made("b", summary={"status": "preempted", "steps": 40}, steps=40)).status == "preempted"


def test_a_run_that_a_process_writes_is_running(made):
    folder = made("a", summary=None)
    with FolderLock(folder) as lock:
        lock.acquire()
        assert one(folder).status == "running"
    assert one(folder).status == "unfinished"


def test_of_a_step_that_was_done_twice_the_later_line_counts(made, line):
    run = one(made("a", lines=[line(1), line(2, loss=9.0), line(3), line(2, loss=7.0)]))
    assert [(each["step"], each["loss"]) for each in run.lines][1] == (2, 7.0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("not json\n", "a line of metrics.jsonl cannot be read, and is left out"),
        ('[1]\n"step"\n{"step": null}\n', "3 lines of metrics.jsonl cannot be read, and are left out"),
        ('{"loss": 3}\n\x00\x00\n\n', "2 lines of metrics.jsonl cannot be read, and are left out"),
        ('{"step": 1e999, "loss": 2}\n', "a line of metrics.jsonl cannot be read, and is left out"),
    ],
)
def test_damaged_lines_are_counted_and_the_others_are_there(made, damage, said):
    folder = made("a", steps=6)
    file = folder / "metrics.jsonl"
    first, rest = file.read_text().split("\n", 1)
    file.write_text(first + "\n" + damage + rest)
    run = one(folder)
    assert run.unread == [said]
    assert [each["step"] for each in run.lines] == [2, 4, 6]


def test_bytes_that_are_no_text_cost_their_line_alone(made):
    folder = made("a", steps=4)
    file = folder / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "lo\xff\xfe\n' + file.read_bytes())
    run = one(folder)
    assert len(run.lines) == 2
    assert "a line of metrics.jsonl" in run.unread[0]


def test_a_last_line_that_was_cut_off_is_no_damage(made):
    folder = made("a", steps=6)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert one(folder).unread == []


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(made):
    folder = made("a")
    (folder / "summary.json").write_text('{"status": "comp')
    (folder / "receipt.json").write_text("[1]")
    run = one(folder)
    assert len(run.lines) == 20
    assert run.status == "unfinished"
    assert run.unread[0].startswith("summary.json cannot be read: ")
    assert run.unread[1] == "receipt.json holds no object"


def test_a_receipt_of_another_format_is_not_shown(made, told):
    run = one(made("a", receipt=told | {"format": 2}))
    assert run.receipt is None
    assert run.unread == ["receipt.json is of format 2; this version reads 1"]


def test_files_that_are_not_there_are_no_fault(made):
    folder = made("a", summary=None)
    (folder / "metrics.jsonl").unlink()
    run = one(folder)
    assert (run.lines, run.evaluations, run.unread, run.steps) == ([], [], [], None)


def test_a_folder_that_is_named_twice_counts_once_and_order_stays(made):
    a, b = made("a"), made("b")
    assert [run.name for run in read([b, a, b / ".." / "b"])] == ["b", "a"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, ["there is no such run", "output_dir of finetune"]),
        (lambda folder: folder.write_text("x"), ["this is a file, no run"]),
        (lambda folder: folder.mkdir(), ["this folder holds no run", "config.yaml, which every run writes"]),
        (lambda folder: (folder.mkdir(), (folder / SEARCH).write_text("{}")), ["holds a search", "best.yaml"]),
        (lambda folder: (folder.mkdir(), (folder / "config.yaml").write_text("- 1")), ["config of the run", "[1]"]),
        (lambda folder: (folder.mkdir(), (folder / "config.yaml").write_text("a: [")), ["config of the run"]),
        (lambda folder: (folder.mkdir(), (folder / "config.yaml").write_bytes(b"\xff")), ["config of the run"]),
    ],
    ids=["nothing", "file", "empty", "search", "list", "yaml", "bytes"],
)
def test_what_is_no_run_is_refused(tmp_path, make, words):
    folder = tmp_path / "x"
    make(folder)
    with pytest.raises(RunError) as error:
        read([folder])
    for word in (*words, str(folder)):
        assert word in str(error.value)


def test_secrets_are_hidden_before_anything_is_made_of_them(made, told, monkeypatch):
    monkeypatch.setenv("STORE_PASSWORD", "a<b&c>d\"'e")
    told["total"]["sentence"] = "it was a<b&c>d\"'e"
    run = one(made("a", config={"data": {"train": "https://me:word@host/x"}}, receipt=told))
    assert run.setting("data.train") == "https://***@host/x"
    assert run.receipt["total"]["sentence"] == "it was ***"


@pytest.mark.parametrize("value", ["1", None, True, float("nan"), float("inf"), [1], {}])
def test_what_is_no_number_is_none(value):
    assert number(value) is None
    assert number(json.loads("1")) == 1.0


def test_a_report_changes_nothing_in_the_folder(made, tmp_path):
    folder = made("a")
    shutil.copytree(folder, tmp_path / "before")
    one(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "before").iterdir()
    }
