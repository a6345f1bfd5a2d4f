"""A receipt of a run: what its compiled steps say, what was timed, and what cannot be said."""

import html
import json
from dataclasses import replace

import pytest

from jaxlean.config import load
from jaxlean.errors import RunError
from jaxlean.receipt import receipt as module
from jaxlean.receipt.cuts import ALL
from jaxlean.receipt.programs import Program
from jaxlean.receipt.receipt import receipt
from jaxlean.report.report import report
from jaxlean.run.finetune import finetune
from jaxlean.run.units import show_bytes, show_seconds, show_usd

pytestmark = [pytest.mark.usefixtures("small_machine"), pytest.mark.slow]


@pytest.fixture(scope="module")
def tiny_values(tiny_base, tiny_rows):
    """A run of two cuts that a step shows."""
    return {
        "model": {"path": str(tiny_base), "dtype": "float32", "attention": "plain"},
        "data": {"train": str(tiny_rows), "max_length": 64, "packing": True},
        "lora": {"r": 4, "lora_alpha": 8},
        "train": {"num_train_epochs": 3, "per_device_train_batch_size": 2, "remat": "full", "loss_chunk_bytes": None},
        "report": {"tensorboard": False},
        "cost": {"usd_per_hour": 3600.0},
    }


@pytest.fixture(scope="module")
def run(tiny_values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("receipt")
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(tiny_values | {"output_dir": str(folder / "run")}))
    finetune(load(file, []))
    return folder / "run"


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """What was compiled for the run's receipt once is the same the next time."""
    known, compile_programs = {}, module.compile_programs

    def compiled(configs, policies, *, length, capacity):
        key = (tuple(configs), length, capacity)
        if key not in known:
            known[key] = compile_programs(configs, policies, length=length, capacity=capacity)
        said, made = known[key]
        return {name: replace(program, step_seconds=[]) for name, program in said.items()}, made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "compile_programs", compiled)
        yield


@pytest.fixture
def seconds(monkeypatch):
    """Name of a program -> what its steps take, instead of running them."""
    took = {}

    def calibrated(said, made, batches, *, rounds):
        assert made.keys() == said.keys()
        for name, program in said.items():
            program.step_seconds = [took.get(name, 1.0)] * rounds

    monkeypatch.setattr(module, "calibrate", calibrated)
    return took


def test_memory_is_that_of_runs_made_without_the_cut(run, seconds, tmp_path, capsys):
    told = receipt(run)
    lines = {line["cut"]: line for line in told["cuts"]}
    own = json.loads((run / "summary.json").read_text())["predicted_memory_bytes"]
    for cut, override in (("LoRA", "lora=null"), ("gradient checkpointing", "train.remat=none")):
        assert lines[cut]["without"] == [override]
        other = finetune(load(run / "config.yaml", [override, f"output_dir={tmp_path / cut.split()[0]}"]))
        found = lines[cut]["memory_bytes"]
        assert (found["with"], found["without"]) == (own, other["predicted_memory_bytes"])
        assert lines[cut]["flops"]["without"] == other["flops_per_step"]
    assert json.loads((run / "receipt.json").read_text()) == told
    assert "gradient checkpointing" in capsys.readouterr().out


def test_time_is_that_of_the_run_times_how_much_longer_the_other_took(run, seconds):
    seconds |= {"LoRA": 1.5, "gradient checkpointing": 0.75, ALL: 1.25}
    told = receipt(run, rounds=2)
    summary = json.loads((run / "summary.json").read_text())
    total, steps = summary["seconds"], summary["phases"]["step"]
    lines = {line["cut"]: line for line in told["cuts"]}
    lora, remat = lines["LoRA"], lines["gradient checkpointing"]
    assert lora["seconds"] == {"with": total, "without": pytest.approx(total + steps / 2), "source": "timed"}
    assert remat["seconds"]["without"] == pytest.approx(total - steps / 4), "it costs time"
    assert lora["usd"]["without"] == pytest.approx(total + steps / 2), "a dollar a second"
    # packing: 24 rows of about 18 tokens would be 12 steps an epoch
    packing = lines["packing"]["seconds"]
    assert packing["source"] == "counted"
    more = 36 / summary["steps"]
    waiting = summary["phases"].get("data_wait", 0.0)
    assert packing["without"] == pytest.approx(total + (steps + waiting) * (more - 1))
    assert told["total"]["usd_without"] > told["total"]["usd"]
    assert "without LoRA, gradient checkpointing, packing, this job would have cost" in told["total"]["sentence"]


def test_steps_are_really_run(run):
    told = receipt(run, rounds=1)
    assert len(told["calibration"]["steps"]) == 3
    assert all(took > 0 for took in told["calibration"]["steps"])
    lora = next(line for line in told["cuts"] if line["cut"] == "LoRA")
    assert lora["seconds"]["without"] > 0


def test_what_is_not_timed_has_no_dollars(run):
    told = receipt(run, measure=False)
    lora = next(line for line in told["cuts"] if line["cut"] == "LoRA")
    assert lora["memory_bytes"] is not None
    assert lora["seconds"] is lora["usd"] is None
    assert told["total"]["usd_without"] is None
    assert "--no-calibrate" in told["total"]["sentence"]


def test_what_does_not_fit_has_no_time_and_the_sentence_says_it(run, monkeypatch):
    monkeypatch.setattr(module, "device_budget", lambda: 1)
    told = receipt(run, measure=False)
    lora = next(line for line in told["cuts"] if line["cut"] == "LoRA")
    assert lora["note"] == "without it the step does not fit on these devices"
    assert "would not fit on these devices" in told["total"]["sentence"]


def test_a_program_that_cannot_be_is_told(run, monkeypatch):
    compile_programs = module.compile_programs

    def refused(configs, policies, **how):
        said, made = compile_programs(configs, policies, **how)
        return said | {"LoRA": Program(refused="no such program", fits=False)}, made

    monkeypatch.setattr(module, "compile_programs", refused)
    told = receipt(run, measure=False)
    lora = next(line for line in told["cuts"] if line["cut"] == "LoRA")
    assert lora["note"] == "there is no such run without it: no such program"
    assert lora["memory_bytes"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device_kind": "NVIDIA H100 80GB HBM3"}, ["on the devices of the run", "NVIDIA H100", "jaxlean plan"]),
        ({"steps": 0}, ["steps that were measured", "0 steps"]),
        (None, ["no finished run there", "summary.json"]),
        ("{", ["summary cannot be read"]),
    ],
)
def test_what_has_no_receipt(run, tmp_path, change, words):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.yaml").write_text((run / "config.yaml").read_text())
    if change is not None:
        text = (run / "summary.json").read_text()
        (folder / "summary.json").write_text(
            change if isinstance(change, str) else json.dumps(json.loads(text) | change)
        )
    with pytest.raises(RunError) as told:
        receipt(folder)
    for word in words:
        assert word in str(told.value)
    assert not (folder / "receipt.json").exists()


def test_from_the_command_line(cli, run, seconds):
    code, out, err = cli("receipt", run, "--rounds", "1")
    assert code == 0, err
    assert "this job would have cost" in out
    code, _, err = cli("receipt", run / "none")
    assert code == 2
    assert "no finished run there" in err


def test_a_report_shows_it_as_it_is(run, seconds, tmp_path):
    seconds.update({"LoRA": 2.0, "gradient checkpointing": 0.5, ALL: 1.5})
    told = receipt(run)
    report([run], tmp_path / "report.html")
    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    words = [told["total"]["sentence"]]
    for line in told["cuts"]:
        words += [line["cut"], line["note"], *line["settings"], *line["without"]]
        for key, show in (("memory_bytes", show_bytes), ("seconds", show_seconds), ("usd", show_usd)):
            if line[key] is not None:
                words += [show(line[key]["with"]), show(line[key]["without"]), line[key]["source"]]
    assert [word for word in words if word not in page] == []
    assert "No receipt yet" not in page
