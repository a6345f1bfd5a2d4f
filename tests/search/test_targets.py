"""Members for hardware that is not here: the same reckoning as where a search is started, in a process of its own."""

import json
import subprocess
import sys

import jax
import pytest

from jaxlean.config import load
from jaxlean.errors import ConfigError
from jaxlean.plan.target import missing, parse
from jaxlean.search.in_process import highest_rank
from jaxlean.search.inputs import constants
from jaxlean.search.members import Members, advise
from jaxlean.search.program import Program
from jaxlean.search.targets import Advice, advise_targets, print_advice

SPACE = "search.space={train.learning_rate: {log: [1.0e-4, 0.1]}, lora.r: [2, 4]}"


@pytest.mark.slow
def test_the_machine_that_is_here_is_a_target_like_others(tiny_yaml, cli, tmp_path):
    config = load(tiny_yaml, [SPACE])
    (found,), num_steps = advise_targets(config, ["cpu"])
    assert num_steps == 6
    assert found.note == ""
    assert found.members is not None

    from jaxlean.run.job import base, resolved
    from jaxlean.xla.mesh import make_mesh

    mesh, job = make_mesh(devices=jax.devices()[:1]), resolved(config)
    model = base(job, mesh)
    names = [*constants(job, list(config.search.space)), "learning_rate"]

    def program(members):
        return Program(job, model, mesh, names=names, rank=highest_rank(job, job), length=64, members=members)

    one = program(1)
    assert one.compile()
    here = advise(one, program, mesh, job)
    assert found.members.chosen == here.chosen
    assert [row[2] for row in found.members.rows] == [row[2] for row in here.rows], "the same bytes"
    assert [row[1] for row in found.members.rows] == pytest.approx([row[1] for row in here.rows]), "the same seconds"
    code, out, err = cli("search", tiny_yaml, SPACE, "--targets", "cpu,h100-80gb")
    assert (code, err) == (0, "")
    assert "a whole trial is 6 steps" in out
    assert not (tmp_path / "run").exists(), "nothing is started"
    lacking = missing(parse("h100-80gb"))
    assert lacking is None or lacking.split(" (")[0] in " ".join(out.split())


@pytest.mark.parametrize(
    ("overrides", "targets", "words"),
    [
        ((), ["h100-80gb:8"], "on one device, and a search starts a worker for each"),
        ((), ["v5e:2x4"], "v5e:1x1"),
        ((), ["abacus"], "no such target"),
        (("lora.init_lora_weights=pissa",), ["cpu"], "share no program"),
    ],
)
def test_what_cannot_be_asked_is_told(tiny_yaml, overrides, targets, words):
    with pytest.raises(ConfigError, match=words):
        advise_targets(load(tiny_yaml, [SPACE, *overrides]), targets)


def test_a_process_that_fails_is_a_note(tiny_yaml, monkeypatch):
    def broken(command, **how):
        return subprocess.CompletedProcess(command, -11, "", "LLVM ERROR: out of memory\n")

    monkeypatch.setattr(subprocess, "run", broken)
    (found,), _ = advise_targets(load(tiny_yaml, [SPACE]), ["cpu"])
    assert found.members is None
    assert found.note == "the compiler's process ended (exit code -11): LLVM ERROR: out of memory"

    def silent(command, timeout, **how):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", silent)
    (found,), _ = advise_targets(load(tiny_yaml, [SPACE]), ["cpu"], limit_seconds=3)
    assert found.note == "the compiler took more than 3 s"


def test_what_the_user_can_mend_comes_back_as_a_note():
    question = {"target": "abacus", "config": {}, "length": 64, "hardware": None}
    done = subprocess.run(
        [sys.executable, "-m", "jaxlean.search.targets"], input=json.dumps(question), capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "no such target" in json.loads(done.stdout)["note"]


def test_the_table(capsys):
    from rich.console import Console

    members = Members(4, ((1, 0.010, 4 * 10**6), (2, 0.006, 7 * 10**6), (4, 0.004, 13 * 10**6)), 20 * 10**6)
    print_advice(
        [Advice("l4", members, usd_per_hour=3.6), Advice("h100", None, "no compiler")], 100, Console(width=200)
    )
    out = capsys.readouterr().out
    assert "2.5x" in out
    assert "12.4 MiB" in out
    assert "$0.0004" in out, "100 steps of 4 ms at a tenth of a cent a second"
    assert "h100: no compiler" in out
