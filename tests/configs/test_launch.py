"""The launch recipes: their syntax, and that every jaxlean command in them is one."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jaxlean.config import load

FOLDER = Path(__file__).parents[2] / "configs" / "launch"
RECIPES = sorted(file.name for file in FOLDER.iterdir())
SCRIPTS = [name for name in RECIPES if name.endswith((".sh", ".sbatch"))]
VALUES = {
    "distributed.coordinator_address": "first:8476",
    "distributed.num_processes": "2",
    "distributed.process_id": "1",
}


def commands(text: str) -> list[list[str]]:
    """The words of each `jaxlean finetune` in a script, those in comments included."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"jaxlean finetune ([^;\n]*)", text)
    # what the shell would put in is not known here: a plain word of each
    lines = (re.sub(r"\\?\$\{?\w+\}?", "word", line) for line in found)
    return [shlex.split(line if line.count('"') % 2 == 0 else line.rstrip('"')) for line in lines]


def test_all_four_are_there():
    assert RECIPES == ["jobset.yaml", "skypilot.yaml", "slurm.sbatch", "tpu_pod.sh"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_command_has_keys_and_options_that_there_are(name):
    text = (FOLDER / name).read_text()
    if name == "jobset.yaml":  # folded lines
        jobs = yaml.safe_load(text)["spec"]["replicatedJobs"]
        text = jobs[0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    (command,) = commands(text)
    config, *rest = command
    assert "--resume" in rest
    overrides = [word for word in rest if not word.startswith("--")]
    assert [word for word in rest if word.startswith("--")] == ["--resume"]
    keys = [word.partition("=")[0] for word in overrides]
    assert "output_dir" in keys
    told = [f"{key}={VALUES[key]}" if key in VALUES else word for key, word in zip(keys, overrides, strict=True)]
    settings = load(None, told)
    assert ("distributed.process_id" in keys) == (settings.distributed.process_id is not None)
    if config != "word":
        assert (FOLDER.parents[1] / config).exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_scripts_parse(name):
    checks = [["bash", "-n"], *([["shellcheck"]] if shutil.which("shellcheck") else [])]
    for check in checks:
        subprocess.run([*check, str(FOLDER / name)], check=True, capture_output=True, text=True)


def test_the_numbers_of_the_jobset_agree():
    jobs = yaml.safe_load((FOLDER / "jobset.yaml").read_text())["spec"]["replicatedJobs"]
    job = jobs[0]["template"]["spec"]
    environment = {entry["name"]: entry.get("value") for entry in job["template"]["spec"]["containers"][0]["env"]}
    assert job["parallelism"] == job["completions"] == int(environment["NUM_PROCESSES"])
    # the name of the first pod: JobSet, replicated job, its number, the pod's number
    command = job["template"]["spec"]["containers"][0]["command"][-1]
    assert f"$JOBSET_NAME-{jobs[0]['name']}-0-0.$JOBSET_NAME:" in command


def test_skypilot_scripts_parse_and_restart_what_can_go_on():
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[part]], check=True)
    assert task["resources"]["use_spot"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [69, 75]
