import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlean.curate import curate as module
from jaxlean.curate.curate import curate, planned
from jaxlean.errors import ConfigError, DataError, RunError


def test_without_steps_there_is_nothing_to_do(job):
    with pytest.raises(ConfigError) as error:
        curate(job([{"text": "a"}], []))
    assert "curate.steps is empty" in str(error.value)
    assert "configs/curate.yaml" in str(error.value)


def test_leakage_goes_first_unless_it_is_told_where(job):
    rows = [{"text": "a"}]
    assert [step.name for step in planned(job(rows, ["quality"]))] == ["quality"]
    assert [step.name for step in planned(job(rows, ["quality"], rows))] == ["leakage", "quality"]
    assert [step.name for step in planned(job(rows, ["quality", "leakage"], rows))] == ["quality", "leakage"]


def test_if_nothing_is_left_it_says_which_step_dropped_how_many(curated, texts):
    with pytest.raises(DataError) as error:
        curated([{"text": text} for text in texts], ["exact_duplicates", {"quality": {"min_words": 99}}])
    message = str(error.value)
    assert "nothing is left of 6 rows" in message
    assert "exact_duplicates dropped 2 of 6 (the same text: 2); quality dropped 4 of 4 (min_words: 4)" in message
    assert "then the same command with --overwrite" in message


def test_a_dataset_of_one_row(curated):
    told, kept, dropped = curated([{"text": "alone"}], ["exact_duplicates", "near_duplicates", "quality"])
    assert (told["kept"], kept[0]["text"], dropped) == (1, "alone", [])


def test_a_column_that_is_missing(job):
    with pytest.raises(DataError, match="the columns fit no known row shape"):
        curate(job([{"body": "a"}], ["quality"]))
    with pytest.raises(DataError, match=r"curate\.text_column: there is no column 'txt'"):
        curate(job([{"text": "a"}], ["quality"], curate={"text_column": "txt"}))
    with pytest.raises(DataError, match=r"the column 'text' is missing\n  where:  .*rows\.jsonl:2"):
        curate(job([{"text": "a"}, {"body": "b"}], ["quality"]))


def test_a_process_that_dies_while_rows_are_read_loses_nothing(job, texts, monkeypatch):
    """Memory is given back by fewer processes; what was read is kept. A mistake in the config lets go of the folder."""

    def fails(error):
        def reading(*arguments):
            raise error

        monkeypatch.setattr(module, "reading", reading)
        with pytest.raises(type(error)):
            curate(config)

    config = job([{"text": text} for text in texts], ["quality"])
    fails(RunError("a process was ended"))
    assert (Path(config.output_dir) / "curate.yaml").exists()
    monkeypatch.undo()
    assert curate(config, resume=True)["kept"] == 6
    shutil.rmtree(config.output_dir)
    fails(DataError("a row cannot be read"))
    assert not (Path(config.output_dir) / "curate.yaml").exists()


def test_curating_the_outcome_again_drops_nothing(curated, job, tmp_path):
    rows = [
        {"text": f"{a} {b} and the rest of a sentence"} for a in ("one", "One", "two") for b in "xyz" for _ in (0, 1)
    ]
    steps = ["exact_duplicates", "near_duplicates"]
    told, _, _ = curated(rows, steps)
    assert told["kept"] < len(rows)
    again = curate(job([], steps, data={"train": str(tmp_path / "out")}, output_dir=str(tmp_path / "again")))
    assert again["kept"] == again["rows"] == told["kept"]


def test_from_the_command_line(cli, job, texts, tmp_path):
    made = job([{"text": text} for text in texts], [])
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {made.output_dir}\ncurate: {{steps: [exact_duplicates], processes: 1}}\n")
    code, out, _ = cli("curate", file, f"data.train={made.data.train[0].path}")
    assert (code, "4 of 6 rows stay" in out) == (0, True)
    assert "Leakage was not looked for: no held-out data are named" in out
    code, _, err = cli("curate", file, f"data.train={made.data.train[0].path}")
    assert code == 2
    assert "--resume goes on with it" in err


def test_whether_leakage_was_looked_for_is_said(cli, job, texts, tmp_path):
    """Training data on the command line leave out the config's held-out data, which belong to other data."""
    made = job([{"text": text} for text in texts], [], [{"text": "another"}])
    train, held_out = made.data.train[0].path, made.data.eval[0].path
    file = tmp_path / "run.yaml"
    file.write_text(
        f"output_dir: {made.output_dir}\ndata: {{train: {train}, eval: {held_out}}}\n"
        "curate: {steps: [exact_duplicates], processes: 1}\n"
    )
    for given, looked in (((), True), ((f"data.train={train}",), False)):
        code, out, _ = cli("curate", file, *given, "--overwrite")
        assert code == 0
        for said in (out, (tmp_path / "out" / "report.md").read_text()):
            assert ("Leakage was not looked for" in said) is not looked
        assert ("│ leakage" in out) is looked


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_the_same_files(tmp_path):
    rows = [{"text": f"row {i % 8000} of a corpus that is just long enough to be cut into shards"} for i in range(9000)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        f"data: {{train: {file}}}\ncurate: {{steps: [exact_duplicates, near_duplicates, quality], processes: 1}}\n"
    )

    def start(name, *options):
        command = [
            sys.executable,
            "-m",
            "jaxlean",
            "curate",
            str(tmp_path / "run.yaml"),
            f"output_dir={tmp_path / name}",
        ]
        return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    kills = 0
    for wanted in ("00-reading/shard-000001.npz", "02-near_duplicates/signed-000000.npz"):
        process = start("cut", *(["--resume"] if kills else []))
        while process.poll() is None and not (tmp_path / "cut" / "work" / wanted).exists():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    assert not (tmp_path / "cut" / "train.parquet").exists()
    assert start("cut", "--resume").wait() == 0
    for name in ("train.parquet", "dropped.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not Path(tmp_path / "cut" / "work").exists()


def test_a_terminal_shows_how_far_it_is(job, texts):
    from rich.console import Console

    console = Console(force_terminal=True, width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    told = []
    status = type(
        "Status", (), {"__enter__": lambda s: s, "__exit__": lambda *_: None, "update": lambda s, t: told.append(t)}
    )
    console.status = lambda text: status()
    curate(job([{"text": text} for text in texts], ["exact_duplicates"]), console=console)
    console.file.close()
    assert told == ["reading: 1 of 1 parts", "exact_duplicates: 1 of 1 parts"]


@pytest.mark.slow
def test_a_line_of_100_megabytes_neither_hangs_nor_fills_the_memory(tmp_path):
    file = tmp_path / "rows.jsonl"
    with file.open("w") as opened:
        opened.write(
            '{"text": "a short one"}\n{"text": "' + "lorem ipsum " * (100 * 2**20 // 12) + '"}\n{"text": "another"}\n'
        )
    steps = "curate.steps=[exact_duplicates,near_duplicates,quality]"
    (tmp_path / "run.yaml").write_text("")
    arguments = ["curate", str(tmp_path / "run.yaml"), f"data.train={file}", steps, f"output_dir={tmp_path / 'out'}"]
    subprocess.run([sys.executable, "-m", "jaxlean", *arguments], stdout=subprocess.DEVNULL, check=True)
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (told["kept"], told["steps"][0]["reasons"]) == (2, {"longer than curate.max_chars": 1})
    assert told["peak_memory_bytes"] < 1.5e9
