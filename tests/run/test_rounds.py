"""`train.sync: diloco` in a run: resumed in the middle of a round, what is evaluated and written, what is refused."""

import json
import math
import signal

import jax
import pytest

from jaxlean.config import build
from jaxlean.errors import ConfigError, Preempted, RunError
from jaxlean.plan.candidate import rows_per_step
from jaxlean.run.evaluate import evaluate
from jaxlean.run.finetune import finetune
from jaxlean.run.job import outline
from jaxlean.run.meter import Meter
from jaxlean.run.rounds import Rounds
from jaxlean.xla import hlo
from jaxlean.xla.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("small_machine")

# Eight steps of two microbatches, exchanges after 3, 6 and 8; everything random that there is.
RUN = (
    *("train.sync=diloco", "train.diloco.every=3", "train.max_steps=8", "train.gradient_accumulation_steps=2"),
    *("train.per_device_train_batch_size=1", "train.logging_steps=1", "train.save_steps=8", "lora.lora_dropout=0.2"),
)
CLOCKS = {"seconds", "tokens_per_second", "kwh", "usd", "peak_memory_bytes"}


@pytest.fixture
def devices(monkeypatch, small_machine):
    """`devices(n)`: jax as on a machine with so many."""
    there = jax.local_devices()
    return lambda num: monkeypatch.setattr(jax, "devices", lambda *backend: there[:num])


def result(run):
    (file,) = [*run.glob("adapter/adapter_model.safetensors"), *run.glob("model/model.safetensors")]
    return file.read_bytes()


def lines(run):
    """Of metrics.jsonl, without what a clock says."""
    told = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in told]


def interrupted(config, monkeypatch, step):
    """Run until SIGTERM comes in a step."""
    add = Meter.add

    def terminate(self, number, measured, **times):
        add(self, number, measured, **times)
        if number == step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Preempted):
        patched.setattr(Meter, "add", terminate)
        finetune(config, resume=True)


@pytest.mark.parametrize(
    "variant",
    [
        (),
        pytest.param(("lora=null", "train.optim=adamw_8bit", "train.diloco.compression=none"), marks=pytest.mark.slow),
        pytest.param(("model.quantization=nf4", "train.remat=auto", "mesh.fsdp=2"), marks=pytest.mark.slow),
        pytest.param(("lora.use_dora=true", "train.optim=muon"), marks=pytest.mark.slow),
    ],
    ids=["lora", "whole model", "nf4 auto fsdp", "dora muon"],
)
def test_resumed_in_the_middle_of_a_round_it_is_the_same_run(variant, tiny_run, tmp_path, monkeypatch, devices):
    devices(4 if "mesh.fsdp=2" in variant else 2)
    overrides = [text for text in (*RUN, *variant) if "lora=null" not in variant or "dropout" not in text]
    whole = finetune(tiny_run(*overrides, f"output_dir={tmp_path / 'whole'}"))
    config = tiny_run(*overrides)
    for step in (4, 6):
        interrupted(config, monkeypatch, step)
    summary = finetune(config, resume=True)
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert summary["eval_after"] == whole["eval_after"]
    assert whole["eval_after"]["loss"] < whole["eval_before"]["loss"]


def test_what_is_evaluated_and_written_are_the_outer_parameters(tiny_run, tmp_path, devices):
    devices(2)
    config = tiny_run(*RUN, "eval.eval_steps=1", "train.max_steps=6")
    summary = finetune(config)
    found = {line["step"]: line["eval_loss"] for line in lines(tmp_path / "run") if "eval_loss" in line}
    assert found[0] == found[1] == found[2] != found[3]
    assert found[3] == found[4] == found[5] != found[6] == summary["eval_after"]["loss"]
    again = evaluate(config, adapter=tmp_path / "run" / "adapter")
    assert again["loss"] == pytest.approx(found[6], rel=1e-5)


def test_a_checkpoint_stays_with_its_number_of_replicas(tiny_run, tmp_path, monkeypatch, devices):
    config = tiny_run(*RUN)
    devices(2)
    interrupted(config, monkeypatch, 4)
    devices(4)
    with pytest.raises(
        RunError, match=r"of a run with another mesh\.data\n[\s\S]*got: +2\n +wanted: 4\n +fix: .*mesh\.data"
    ):
        finetune(config, resume=True)


def test_what_cannot_be_is_refused_before_anything_is_written(tiny_run, tmp_path, devices):
    devices(2)
    with pytest.raises(
        ConfigError, match=r"train\.diloco\.every: .*\n +got: +an exchange every 9 steps, 8 steps in all"
    ):
        finetune(tiny_run(*RUN, "train.diloco.every=9"))
    devices(1)
    with pytest.raises(ConfigError, match=r"there is one replica\n +got: +mesh\.data=1 on 1 device\n"):
        finetune(tiny_run(*RUN))
    assert not (tmp_path / "run").exists()
    for mesh, got in (({"data": 1}, r"mesh\.data=1"), ("auto", "mesh: auto")):
        with pytest.raises(ConfigError, match=rf"needs replicas, not {got}; mesh\.data says how many"):
            build({"train": {"sync": "diloco"}, "mesh": mesh})


def test_a_plan_sees_the_same_step_and_what_the_exchange_adds(tiny_run, devices):
    devices(4)
    rounds = [*RUN, "lora=null", "mesh.data=4", "lora.lora_dropout=0.0"][:-1]
    rounds.remove("lora.lora_dropout=0.2")
    alone, together = (
        outline(config, make_mesh(config.mesh), length=64)
        for config in (tiny_run(*rounds), tiny_run(*rounds, "train.sync=step"))
    )
    assert together.outer is None
    programs = [made.build("none").trace(*made.arguments).lower().compile() for made in (alone, together)]
    sent = [hlo.read(program.as_text()).bytes for program in programs]
    weights = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(alone.state.outer))
    assert sent[0] == 0
    assert sent[1] >= 2 * weights * 3 / 4
    more = [program.memory_analysis().argument_size_in_bytes for program in programs]
    assert 2 * weights <= more[0] - more[1] < 2.1 * weights  # where a round began, and the outer momentum
    config = tiny_run(*rounds)
    exchange = Rounds(config, alone.outer, alone.state, 8)
    assert 0.5 * weights < 3 * exchange.sent_bytes / (2 * 3 / 4) * 2 < 0.7 * weights
    assert exchange.memory_bytes > more[0]
    with pytest.raises(ConfigError, match=r"how many replicas\?"):
        rows_per_step(build({"train": {"sync": "diloco"}}))
