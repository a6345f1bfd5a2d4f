"""A search from end to end: what it leaves, that its numbers are those of `finetune`, that it goes on and ends well."""

import json
import os
import shutil
import signal

import pytest

from jaxlean.config import load
from jaxlean.run.finetune import finetune
from jaxlean.run.lease import Leases
from jaxlean.search.program import Program
from jaxlean.search.study import JOURNAL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_machine")]

SPACE = "search.space={train.learning_rate: {log: [1.0e-4, 0.1]}, lora.r: [2, 4], train.adam_beta2: [0.9, 0.99]}"
SMALL = (SPACE, "train.max_steps=9", "search.num_trials=6", "search.startup_trials=2")


def rows(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def searched(small_machine, tiny_values, tmp_path_factory):
    """A folder with a finished search, and what it printed."""
    from contextlib import redirect_stdout
    from io import StringIO

    from jaxlean.search.search import search

    folder = tmp_path_factory.mktemp("search")
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(tiny_values))
    out = StringIO()
    with redirect_stdout(out):
        search(load(file, [*SMALL, f"output_dir={folder / 'search'}"]))
    return folder / "search", out.getvalue(), file


def test_what_it_leaves(searched):
    folder, said, _ = searched
    assert {entry.name for entry in folder.iterdir()} == {
        "search.yaml", "study.journal", "workers", "trials.jsonl", "summary.json", "best.yaml", "search.png"
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    found = rows(folder)
    assert summary["trials"] == len(found) == 6
    assert (summary["compiled"], summary["members"], summary["isolation"]) == (1, 1, "program")
    assert summary["compiles_per_trial"] == pytest.approx(1 / 6)
    assert summary["steps"] == sum(row["steps"] for row in found) < 6 * 9
    assert {row["state"] for row in found} == {"complete", "pruned"}
    best = min((row for row in found if row["state"] == "complete"), key=lambda row: row["values"]["loss"])
    assert summary["best"][0]["number"] == best["number"]
    assert "compared at [1, 3, 9]" in said
    assert said.count("trial ") >= 6
    assert f"best: jaxlean finetune {folder}/best.yaml" in said.replace("\n", "")


def test_the_best_is_what_finetune_makes_of_it(searched):
    folder, _, _ = searched
    best = json.loads((folder / "summary.json").read_text())["best"][0]
    summary = finetune(load(folder / "best.yaml"))
    assert summary["eval_after"]["loss"] == pytest.approx(best["values"]["loss"], rel=2e-4)
    assert summary["eval_after"]["tokens"] == best["quality"]["tokens"]


def test_the_same_command_goes_on_and_another_search_is_refused(searched, cli):
    folder, _, file = searched
    (folder / "best").mkdir(exist_ok=True)
    (folder / "best" / "config.yaml").touch()
    code, out, err = cli("search", file, *SMALL, f"output_dir={folder}", "search.num_trials=7")
    assert (code, err) == (0, "")
    assert "going on: 6 trials are there" in out
    assert [row["number"] for row in rows(folder)] == list(range(7))
    code, _, err = cli("search", file, *SMALL, f"output_dir={folder}", "train.max_steps=5")
    assert code == 2
    assert "a search with another train.max_steps" in err
    code, _, err = cli("finetune", file, f"output_dir={folder}", "--overwrite")
    assert (code, "the output folder holds a search" in err) == (2, True)
    code, _, err = cli("search", file, *SMALL, f"output_dir={folder / 'best'}")
    assert (code, "holds something else than a search" in err) == (2, True)
    code, _, err = cli("search", file, *SMALL[:3], f"output_dir={folder}", "search.num_trials=1", "--overwrite")
    assert code == 0
    assert len(rows(folder)) == 1


def test_a_run_does_not_begin_in_it_and_nobody_waits_for_its_snapshots(searched, cli):
    folder, _, file = searched
    code, _, err = cli("finetune", file, f"output_dir={folder}")
    assert (code, "the output folder holds a search" in err) == (2, True)
    code, _, err = cli("evaluate", "--watch", folder)
    assert (code, "this is a search" in err) == (2, True)


def test_nobody_overwrites_who_is_at_work(searched, cli):
    folder, _, file = searched
    lease = Leases().take(folder / "workers" / "other")
    before = (folder / JOURNAL).read_bytes()
    code, _, err = cli("search", file, *SMALL, f"output_dir={folder}", "--overwrite")
    assert code == 2
    assert "the search is not overwritten: others are at work in it" in err
    assert f"process {os.getpid()} on" in err
    assert (folder / JOURNAL).read_bytes() == before
    lease.release(remove=True)


def test_other_rows_are_another_search(searched, cli, tmp_path):
    _, _, file = searched
    rows = shutil.copy(json.loads(file.read_text())["data"]["train"], tmp_path)
    command = ("search", file, SPACE, "train.max_steps=1", f"data.train={rows}", f"output_dir={tmp_path / 'out'}")
    assert cli(*command, "search.num_trials=1")[0] == 0
    with open(rows, "a") as out:
        out.write('{"prompt": "a", "completion": "b"}\n')
    code, _, err = cli(*command, "search.num_trials=2")
    assert code == 2
    assert "what data.train names has changed since the search was started" in err


def test_several_objectives(searched, cli, tmp_path):
    _, _, file = searched
    out = tmp_path / "out"
    code, _, err = cli(
        "search", file, SPACE, "train.max_steps=2", "search.num_trials=5", "search.objectives=[loss, bytes]",
        "search.sampler=random", f"output_dir={out}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = rows(out)
    assert {row["state"] for row in found} == {"complete"}, "nothing is pruned"
    sizes = {row["params"]["lora.r"]: row["values"]["bytes"] for row in found}
    assert sizes[4] == 2 * sizes[2], "of the trial's own rank"
    front = json.loads((out / "summary.json").read_text())["best"]
    for one in found:  # whoever is not in front is beaten by one who is
        if one["number"] not in [best["number"] for best in front]:
            assert any(all(best["values"][name] <= one["values"][name] for name in ("loss", "bytes")) for best in front)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "nothing is searched"),
        ((SPACE, "data.eval=null"), "trials are compared by held-out data"),
        ((SPACE, "data.train=null"), "data.train is not set"),
        ((SPACE, "mesh=auto"), "mesh: auto is not for a search"),
        ((SPACE, "search.isolation=program", "lora.init_lora_weights=pissa"), "got:    lora.init_lora_weights: pissa"),
        (("search.space={train.lr: {log: [0, 1]}}",), "a logarithm needs a low above 0"),
        ((SPACE, "search.objectives=[accuracy]"), "task: generate has no accuracy"),
        (("search.space={train.lr: {logg: [1, 2]}}",), "there is no logg; did you mean log, as {log: [low, high]}?"),
        (("search.space={train.lr: {log: 1.0e-4}}",), "two numbers, [low, high], are wanted, not 0.0001"),
        ((SPACE, "data.train=nowhere.jsonl", "train.max_steps=null"), "nowhere.jsonl"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(cli, tiny_yaml, tmp_path, overrides, words):
    code, _, err = cli("search", tiny_yaml, f"output_dir={tmp_path / 'out'}", *overrides)
    assert code == 2
    assert words in err
    assert not (tmp_path / "out" / JOURNAL).exists()


def test_a_database_is_of_one_search(cli, tiny_yaml, tmp_path):
    """As from another machine, whose folder knows nothing of it."""
    command = ("search", tiny_yaml, SPACE, f"search.storage=sqlite:///{tmp_path}/study.db", "train.max_steps=1")
    assert cli(*command, "search.num_trials=1", f"output_dir={tmp_path / 'a'}")[0] == 0
    code, _, err = cli(*command, "search.num_trials=2", f"output_dir={tmp_path / 'b'}", "train.weight_decay=0.5")
    assert code == 2
    assert "the study is of another train.weight_decay" in err
    assert not (tmp_path / "b").exists()
    other = SPACE.replace("[2, 4]", "[2, 8]")
    code, _, err = cli(*command[:2], other, *command[3:], "search.num_trials=2", f"output_dir={tmp_path / 'b'}")
    assert (code, "the study is of another search.space.lora.r" in err) == (2, True)
    code, _, err = cli(*command, "search.num_trials=2", f"output_dir={tmp_path / 'c'}", "search.members=1")
    assert (code, err) == (0, "")
    code, _, err = cli(*command[:3], *command[4:], f"output_dir={tmp_path / 'c'}")
    assert (code, "a search with another search.storage" in err) == (2, True)


def test_an_objective_is_measured(searched, cli, tmp_path):
    _, _, file = searched
    code, _, err = cli(
        "search", file, SPACE, "train.max_steps=1", "search.num_trials=1", "search.objectives=[exact_match]",
        "eval.max_new_tokens=2", f"output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert rows(tmp_path / "out")[0]["values"]["exact_match"] >= 0.0


def test_files_that_no_trial_could_read_end_it(cli, tiny_yaml, tmp_path):
    command = ("search", tiny_yaml, SPACE, f"output_dir={tmp_path / 'out'}", "search.num_trials=2")
    code, _, err = cli(*command, "data.train=nowhere.jsonl", "data.eval=nowhere.jsonl")
    assert code == 2
    assert "nowhere.jsonl" in err
    code, _, err = cli(*command, "search.max_usd=1", "cost.usd_per_hour=null", "cost.hardware=nowhere.yaml")
    assert (code, "nowhere.yaml" in err) == (2, True)


def test_who_is_told_to_end_leaves_its_trial_to_the_next(searched, cli, tmp_path, monkeypatch):
    _, _, file = searched
    command = ("search", file, SPACE, "train.max_steps=4", "search.num_trials=2", f"output_dir={tmp_path / 'out'}")
    taken, step = [], Program.step

    def told(self, *arguments):
        taken.append(step(self, *arguments))
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return taken[-1]

    monkeypatch.setattr(Program, "step", told)
    code, _, err = cli(*command)
    assert code == 75
    assert err.startswith("preempted (SIGTERM): the same command goes on with the study")
    monkeypatch.undo()
    code, _, err = cli(*command)
    assert (code, err) == (0, "")
    found = rows(tmp_path / "out")
    assert [row["state"] for row in found] == ["fail", "complete", "complete"]
    assert found[0]["params"] == found[1]["params"]
