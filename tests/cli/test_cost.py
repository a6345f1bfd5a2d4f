"""Verbs that say what a job costs, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlean.plan.target import missing, parse

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("small_machine")


def test_plan_asks_for_what_it_is_told(cli, tiny_yaml, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("jaxlean.plan.show.plan_and_print", lambda *given, **how: asked.update(how, given=given))
    code, _, err = cli("plan", tiny_yaml, "seed=5")
    assert (code, err) == (0, "")
    config, targets = asked.pop("given")
    assert (config.seed, targets) == (5, None)
    assert asked == {"deadline_hours": None, "max_usd": None, "json": None, "every": False, "parallel": None,
                     "limit_seconds": 300}  # fmt: skip
    limits = ["--deadline-hours", "2", "--max-usd", "1.5", "--parallel", "3", "--limit", "60"]
    code, _, err = cli("plan", tiny_yaml, "--targets", "l4:8,cpu", "--json", tmp_path / "a.json", "--all", *limits)
    assert (code, err) == (0, "")
    assert asked.pop("given")[1] == ["l4:8", "cpu"]
    assert asked == {"deadline_hours": 2, "max_usd": 1.5, "json": tmp_path / "a.json", "every": True, "parallel": 3,
                     "limit_seconds": 60}  # fmt: skip


def test_a_plan_is_made_and_run(cli, tiny_yaml, tmp_path, python):
    """The whole way, with the compilers that are here: that of the CPU, say."""
    told = ["model.quantization=int8", "train.remat=full", "data.eval=null", "train.max_steps=2"]
    file = tmp_path / "plan.json"
    done = python("-m", "jaxlean", "plan", tiny_yaml, *told, "--targets", "cpu,l4", "--max-usd", "9", "--json", file)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "the cheapest" in done.stdout
    values = json.loads(file.read_text())
    found = {offer["row"]["target"]: offer["row"] for offer in values["offers"]}
    assert found["cpu"]["status"] == "fits"
    assert found["l4"]["status"] == ("fits" if missing(parse("l4")) is None else "bound")
    assert (found["l4"]["status"] == "bound") == ("~ bound only: the CUDA plugin" in done.stdout)
    code, out, err = cli("finetune", tiny_yaml, *told, "--plan", file)
    assert code == 0, err
    assert ("plan: made for l4, run on 1 of CPU" in out) == (values["target"] == "l4")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["predicted_memory_bytes"] > 0


def test_ctrl_c_ends_a_plan_and_its_workers(tiny_yaml, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(PLAN_WITH_A_WORKER_THAT_WAITS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    arguments = [sys.executable, script, tmp_path / "pid", "plan", tiny_yaml, "--targets", "l4"]
    with subprocess.Popen(
        [*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as plan:  # fmt: skip
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        worker = int((tmp_path / "pid").read_text())
        plan.send_signal(signal.SIGINT)
        out, err = plan.communicate(timeout=60)
    assert plan.returncode in (1, 130)
    assert out == ""
    assert "Traceback" not in err
    wait_for(lambda: not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes())


# The command line in a process whose workers write down who they are and wait, while their stdin lasts. It listens to
# Ctrl-C also where these tests run in the background, where shells have it ignored.
PLAN_WITH_A_WORKER_THAT_WAITS = """#!/usr/bin/env python
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
file = sys.argv.pop(1)
if __name__ == "__main__":
    with open(file + ".worker", "w") as script:
        print(f"#!{sys.executable} -IS", "import os, time", file=script, sep="\\n")
        print(f"open({file!r}, 'w').write(str(os.getpid()))", "time.sleep(60)", file=script, sep="\\n")
    os.chmod(file + ".worker", 0o755)
    sys.executable = file + ".worker"
    from jaxlean.cli import main
    main()
"""


def wait_for(condition):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 60
        time.sleep(0.05)


def test_audit_asks_for_what_it_is_told(cli, tiny_yaml, monkeypatch):
    asked = {}
    monkeypatch.setattr("jaxlean.audit.show.audit_and_print", lambda *given, **how: asked.update(how, given=given))
    code, out, err = cli("audit", tiny_yaml, "seed=5", "--targets", "l4:1,cpu", "--parallel", "1", "--limit", "9")
    assert (code, out, err) == (0, "", "")
    config, targets = asked.pop("given")
    assert (config.seed, targets) == (5, "l4:1,cpu")
    assert asked == {"file": tiny_yaml, "limit_seconds": 9, "parallel": 1}


@pytest.mark.slow
def test_audit_takes_another_projects_config(cli, tiny_base, tiny_rows, tmp_path, python):
    """The whole way, with processes that compile: of a config in which little is left to plan."""
    theirs = tmp_path / "axolotl.yaml"
    theirs.write_text(
        f"base_model: {tiny_base}\nadapter: lora\nload_in_8bit: true\nlora_target_linear: true\nbf16: true\n"
        f"datasets: [{{path: {tiny_rows.name}, type: {{field_instruction: prompt, field_output: completion}}}}]\n"
        "neftune_noise_alpha: 5\nmicro_batch_size: 1\nlearning_rate: 1e-4\nsequence_len: 64\nsample_packing: true\n"
    )
    (tmp_path / tiny_rows.name).write_text(tiny_rows.read_text())  # beside the config, as its path says
    done = python("-m", "jaxlean", "audit", theirs, "train.remat=auto", "--targets", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"{theirs}: Axolotl, converted (jaxlean convert {theirs} -o CONFIG.yaml says how)" in done.stdout
    assert "without counterpart: neftune_noise_alpha" in done.stdout
    assert "2 LoRA" in done.stdout
    assert "6 base in int8" in done.stdout.partition("left on the table")[0]
    assert "10 right-sized parallelism" in done.stdout
    assert "price: " in done.stdout


def test_audit_tells_what_is_wrong_with_a_config(cli, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("train: {lerning_rate: 1}\n")
    assert "did you mean 'learning_rate'?" in cli("audit", file, "--targets", "cpu")[2]
    file.write_text("colour: red\n")
    assert "not a config that is known" in cli("audit", file, "--targets", "cpu")[2]
    file.write_text("base_model: x\nadapter: lora\nrl: dpo\n")
    assert "jaxlean does not do this" in cli("audit", file, "--targets", "cpu")[2]
