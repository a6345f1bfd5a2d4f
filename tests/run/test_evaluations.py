"""What becomes of scores, whoever measures: logged once, kept for a resumed run, deciding the end and the result."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlean.config import RunConfig, build
from jaxlean.errors import RunError
from jaxlean.run import finetune as story
from jaxlean.run.evaluate import Evaluator
from jaxlean.run.evaluations import Evaluations
from jaxlean.run.finetune import finetune
from jaxlean.run.manifest import Unreadable
from jaxlean.run.meter import Meter
from jaxlean.run.metrics import Metrics
from jaxlean.run.peers import Peers
from jaxlean.run.score_files import Score, read_score, scored_steps, write_score
from jaxlean.run.snapshots import Snapshots, read_snapshot, snapshot_steps

pytestmark = pytest.mark.usefixtures("small_machine")


RUNS: list[Any] = []


class Told:
    """An evaluator whose losses are those of the states: their only number."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def loss(self, trainable: Any, frozen: Any) -> Any:
        self.calls.append(float(trainable["w"]))
        return {"loss": self.calls[-1]}

    def __call__(self, model: Any, trainable: Any, frozen: Any) -> Any:
        return self.loss(trainable, frozen)


def state(loss: float) -> Any:
    return {"w": jax.device_put(jnp.float32(loss), jax.devices()[0])}


def config_of(**section: Any) -> RunConfig:
    return build({"data": {"eval": "rows.jsonl"}, "eval": {"eval_steps": 10, **section}, "train": {"logging_steps": 5}})


class Run:
    """Training whose loss after each ten steps is known."""

    def __init__(self, folder: Path, config: RunConfig, *, resume_step: int | None = None, num_steps: int = 1000):
        self.folder, self.config, self.said, self.evaluator = folder, config, [], Told()
        self.metrics = Metrics(folder, config.report.model_copy(update={"tensorboard": False}), resume_step=resume_step)
        self.meter = Meter.__new__(Meter)
        RUNS.append(self)
        self.evaluations = Evaluations(
            config, folder, self.evaluator, Peers(), num_steps=num_steps, metrics=self.metrics,
            resume=resume_step is not None, resume_step=resume_step, say=self.said.append,
        )  # fmt: skip

    def take(self, losses: list[float], start: int = 0) -> int:
        """Train through these losses; the step at which it ends."""
        done = start
        for loss in losses:
            for _ in range(10):
                done += 1
                if self.evaluations.between(done, state(loss), {}, self.meter) is not None:
                    return done
                if self.evaluations._snapshots is not None:
                    self.evaluations._snapshots.settle()
        return done

    def end(self, loss: float, done: int) -> tuple[Any, float]:
        """(what the result is worth, its only number)."""
        found, result = self.evaluations.after(None, state(loss), {}, done, self.meter)
        self.evaluations.close(finished=True)
        return found, float(result["w"])

    @property
    def logged(self) -> list[tuple[int, float]]:
        self.metrics.close()
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]


@pytest.fixture(autouse=True)
def _runs_without_clocks_that_end(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(Meter, "within", lambda self, phase: contextlib.nullcontext())
        patched.setattr(Meter, "eval_before", None, raising=False)
        yield
    while RUNS:
        run = RUNS.pop()
        run.evaluations.close()
        run.metrics.close()


def test_today_nothing_is_kept_but_lines(tmp_path):
    run = Run(tmp_path, config_of())
    assert run.take([3.0, 2.0, 1.0]) == 30
    assert run.end(1.0, 30) == ({"loss": 1.0}, 1.0)
    assert run.logged == [(10, 3.0), (20, 2.0), (30, 1.0), (30, 1.0)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert run.evaluations.summary() == {"stopped_early": None, "best_step": None, "evaluations": None}


def test_none_measures_nothing(tmp_path):
    run = Run(tmp_path, config_of(mode="none"))
    run.evaluations._evaluator = None
    assert run.take([3.0, 2.0]) == 20
    assert run.end(2.0, 20) == (None, 2.0)
    assert run.evaluator.calls == []


def test_the_best_step_is_written(tmp_path):
    run = Run(tmp_path, config_of(load_best=True))
    run.take([3.0, 1.0, 2.0, 1.5])
    run.evaluations._snapshots.settle()
    assert snapshot_steps(tmp_path / "snapshots") == [20]
    assert run.end(1.25, 45) == ({"loss": 1.0}, 1.0)
    assert run.evaluations.summary()["best_step"] == 20
    assert "written is step 20, whose loss is the best, of 5 scored" in run.said
    assert run.evaluations.summary()["evaluations"] == {"mode": "sync", "scored": 5}
    last = Run(tmp_path / "last", config_of(load_best=True))
    last.take([3.0, 2.0])
    assert last.end(1.5, 25) == ({"loss": 1.5}, 1.5)
    assert last.evaluations.best_step == 25


def test_a_best_snapshot_that_was_altered_is_not_written(tmp_path):
    run = Run(tmp_path, config_of(load_best=True))
    run.take([3.0, 1.0, 2.0])
    run.evaluations._snapshots.settle()
    file = tmp_path / "snapshots" / "20" / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run.end(1.5, 35) == ({"loss": 1.5}, 1.5)
    assert any(line.startswith("the best snapshot, of step 20, is not what was written: arrays") for line in run.said)


def test_a_best_snapshot_that_is_gone_is_told(tmp_path):
    run = Run(tmp_path, config_of(load_best=True))
    run.take([3.0, 1.0, 2.0])
    run.evaluations._snapshots.settle()
    shutil.rmtree(tmp_path / "snapshots" / "20")
    assert run.end(1.5, 35) == ({"loss": 1.5}, 1.5)
    assert run.said[-2:] == [
        "the best snapshot, of step 20, is gone", "written is the last step, 35: the state of no better one is there"
    ]  # fmt: skip
    assert run.evaluations.summary()["best_step"] == 35


def test_a_better_step_whose_snapshot_found_no_room_leaves_the_one_before(tmp_path, monkeypatch):
    write = Snapshots._write_folder

    def full(self, name, host, content):
        if name == "20":
            raise OSError(28, "No space left on device")
        write(self, name, host, content)

    monkeypatch.setattr(Snapshots, "_write_folder", full)
    run = Run(tmp_path, config_of(load_best=True))
    run.take([3.0, 1.0, 5.0])
    assert run.end(4.0, 35) == ({"loss": 3.0}, 3.0)
    assert run.said[-2:] == [
        "the best snapshot, of step 20, is gone",
        "written is step 10, whose loss is the best of those whose state is there, of 4 scored",
    ]


def test_where_the_best_snapshot_cannot_be_read_now_nothing_else_is_written(tmp_path, monkeypatch):
    run = Run(tmp_path, config_of(load_best=True))
    run.take([3.0, 1.0, 2.0])

    def away(*_: object) -> None:
        raise Unreadable("arrays.safetensors is not readable ([Errno 116] Stale file handle)")

    with monkeypatch.context() as patched:
        patched.setattr("jaxlean.run.evaluations.read_snapshot", away)
        with pytest.raises(RunError, match="the snapshot of step 20, the best, cannot be read") as refused:
            run.end(1.5, 35)
    assert "Stale file handle" in str(refused.value)
    assert "--resume reads it again" in str(refused.value)
    assert run.end(1.5, 35) == ({"loss": 1.0}, 1.0)


@pytest.fixture
def killed(tmp_path, monkeypatch) -> Path:
    """What lies in a run's folder when kill -9 comes while the best snapshot, of step 20, is being written."""
    folder, write = tmp_path / "killed", Snapshots._write_folder

    def copied(self, name, host, content):
        if name == "20":
            shutil.copytree(tmp_path / "run", folder)
        write(self, name, host, content)

    with monkeypatch.context() as patched:
        patched.setattr(Snapshots, "_write_folder", copied)
        run = Run(tmp_path / "run", config_of(load_best=True))
        run.take([3.0, 1.0])
        run.evaluations.close()
    assert scored_steps(folder / "evaluations") == [10, 20]
    return folder


def test_killed_before_the_best_was_on_disk_a_run_hands_it_over_again(killed):
    assert snapshot_steps(killed / "snapshots") == [10], "the best before goes when its better is there"
    again = Run(killed, config_of(load_best=True), resume_step=20)
    again.evaluations.between(20, state(1.0), {}, again.meter)
    again.evaluations._snapshots.settle()
    assert snapshot_steps(killed / "snapshots") == [20]
    assert again.take([2.0], start=20) == 30
    assert again.end(1.5, 35) == ({"loss": 1.0}, 1.0)
    assert again.evaluator.calls == [2.0, 1.5], "what is known is not measured again"
    assert again.logged == [(10, 3.0), (20, 1.0), (30, 2.0), (35, 1.5)]


def test_killed_later_a_run_has_the_best_before(killed):
    """The state of step 20 is nowhere any more."""
    again = Run(killed, config_of(load_best=True), resume_step=25)
    again.evaluations.between(25, state(4.0), {}, again.meter)
    assert again.take([4.0], start=25) == 35
    assert again.end(5.0, 40) == ({"loss": 3.0}, 3.0)
    assert "the best snapshot, of step 20, is gone" in again.said
    assert "written is step 10, whose loss is the best of those whose state is there, of 4 scored" in again.said


def test_a_damaged_best_snapshot_of_the_step_to_go_on_from_is_written_anew(tmp_path):
    run = Run(tmp_path, config_of(load_best=True))
    run.take([3.0, 1.0])
    run.evaluations.close()
    run.metrics.close()
    file = tmp_path / "snapshots" / "20" / "arrays.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    again = Run(tmp_path, config_of(load_best=True), resume_step=20)
    again.evaluations.between(20, state(1.0), {}, again.meter)
    again.evaluations._snapshots.settle()
    assert file.read_bytes() == whole
    token = again.evaluations._snapshots.token(20)
    once_more = Run(tmp_path, config_of(load_best=True), resume_step=20)
    once_more.evaluations.between(20, state(1.0), {}, once_more.meter)
    once_more.evaluations._snapshots.settle()
    assert once_more.evaluations._snapshots.token(20) == token, "one that is whole stays"


def test_a_rule_ends_the_run_and_ends_it_again_when_it_is_resumed(tmp_path):
    config = config_of(stopping={"patience": 2})
    run = Run(tmp_path, config)
    assert run.take([3.0, 1.0, 1.5, 1.25, 0.5]) == 40
    said = run.evaluations.summary()["stopped_early"]
    assert (said["step"], said["rule"]) == (40, "patience")
    assert said["message"] == "2 evaluations after step 20, whose 1.0000 is the best, not better"
    run.metrics.close()
    again = Run(tmp_path, config, resume_step=40)
    assert again.evaluations.between(40, state(1.25), {}, again.meter).step == 40
    assert again.evaluator.calls == []  # known already
    assert again.logged == run.logged == [(10, 3.0), (20, 1.0), (30, 1.5), (40, 1.25)]
    more = Run(tmp_path, config_of(stopping={"patience": 4}), resume_step=40)
    assert more.evaluations.between(40, state(1.25), {}, more.meter) is None


def test_a_resumed_run_forgets_what_lies_beyond_its_step(tmp_path):
    config = config_of(load_best=True)
    run = Run(tmp_path, config)
    run.take([3.0, 2.0, 1.0])
    run.evaluations.close()
    run.metrics.close()
    (tmp_path / "evaluations" / "20.json").unlink()
    write_score(tmp_path / "evaluations", Score(20, "late", {"loss": 2.0}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text(lines[0] + "\n")  # as where it died before the score of 20 was logged
    again = Run(tmp_path, config, resume_step=25)
    assert scored_steps(tmp_path / "evaluations") == [10, 20]
    assert snapshot_steps(tmp_path / "snapshots") == []  # that of 30, and 10's made room for it
    assert again.evaluations.best_step == 20
    assert again.take([4.0], start=20) == 30
    assert again.logged == [(10, 3.0), (20, 2.0), (30, 4.0)]


def test_scores_of_others_come_late_and_out_of_order(tmp_path):
    config = config_of(mode="async", evaluators=0, snapshots=9, stopping={"divergence": 2.0}, load_best=True)
    run = Run(tmp_path, config)
    run.evaluations._handed = Others(run)
    assert run.take([3.0, 2.0, 2.5]) == 30
    others = run.evaluations._handed
    others.send(30, 2.5)
    others.send(10, 3.0)
    assert run.evaluations.between(35, state(9.0), {}, run.meter) is None
    run.evaluations._snapshots.settle()
    assert run.said == ["step 30: held-out loss 2.5000 (at step 35)", "step 10: held-out loss 3.0000 (at step 35)"]
    assert snapshot_steps(tmp_path / "snapshots") == [20, 30]  # 30 is the best, 20 waits
    others.send(20, None, refused="arrays.safetensors has 5 bytes instead of 9")
    run.evaluations.between(40, state(9.0), {}, run.meter)
    others.send(40, 9.0)
    stop = run.evaluations.between(45, state(9.5), {}, run.meter)
    assert (stop.step, stop.rule) == (40, "divergence")
    assert "the snapshot of step 20 was refused: arrays.safetensors has 5 bytes instead of 9" in run.said
    assert run.end(9.5, 45) == ({"loss": 2.5}, 2.5)
    assert run.evaluator.calls == [9.5]  # the end, which nobody scored
    assert run.logged == [(30, 2.5), (10, 3.0), (40, 9.0), (45, 9.5)]
    assert run.evaluations.summary()["evaluations"] == {
        "mode": "async", "scored": 4, "skipped": 0, "refused": 1, "restarted": 0
    }  # fmt: skip


def test_a_better_score_that_is_being_told_keeps_its_snapshot(tmp_path, monkeypatch):
    """Two come at once, the better one last, and the thread makes room between."""
    run = Run(tmp_path, config_of(mode="async", evaluators=0, snapshots=9, load_best=True))
    run.evaluations._handed = others = Others(run)
    run.take([3.0, 1.0])
    others.send(10, 3.0)
    others.send(20, 1.0)
    snapshots, log = run.evaluations._snapshots, run.metrics.log

    def slow(step, values):
        log(step, values)
        snapshots._thread.submit(snapshots._make_room).result()

    monkeypatch.setattr(run.metrics, "log", slow)
    assert run.evaluations.between(25, state(4.0), {}, run.meter) is None
    assert snapshot_steps(tmp_path / "snapshots") == [20]
    assert run.end(4.0, 30) == ({"loss": 1.0}, 1.0)


def test_a_score_that_has_come_and_is_not_taken_up_yet_is_not_left_out(tmp_path):
    run = Run(tmp_path, config_of(mode="async", evaluators=0, snapshots=1))
    run.evaluations._handed = Others(run)
    run.take([3.0])
    token = run.evaluations._snapshots.token(10)
    write_score(tmp_path / "evaluations", Score(10, token, {"loss": 3.0}, who="others"))
    run.take([2.0, 1.0], start=10)
    assert snapshot_steps(tmp_path / "snapshots") == [10, 30]
    assert run.evaluations._snapshots.token(10) == token, "another would be dropped as that of an earlier start"
    assert run.evaluations.summary()["evaluations"]["skipped"] == 1


class Others:
    """In the place of `Handed`: scores that the test sends."""

    restarted = 0

    def __init__(self, run: Run) -> None:
        self.run, self.came = run, []

    def send(self, step: int, loss: float | None, refused: str | None = None) -> None:
        self.run.evaluations._snapshots.settle()
        token = self.run.evaluations._snapshots.token(step)
        assert token is not None
        self.came.append(Score(step, token, None if loss is None else {"loss": loss}, refused, "others"))

    def collect(self) -> list[Score]:
        came, self.came = self.came, []
        return came

    def somebody_works(self) -> bool:
        return False

    def known(self, step: int) -> None:
        pass

    def close(self, *, finished: bool) -> None:
        pass


# ---- a whole run


@pytest.mark.slow
def test_a_run_stops_early_and_writes_its_best_step(tiny_run, tmp_path, monkeypatch):
    """Whose losses are made up; its states are not."""
    losses = {2: 1.0, 4: 0.5, 6: 0.75, 8: 0.7}
    kept: dict[int, Any] = {}
    between = Evaluations.between

    def at(self, done, result, frozen, meter):
        if done in losses:
            kept[done] = jax.device_get(result)
            monkeypatch.setattr(
                Evaluator, "loss", lambda *_: {"loss": losses[done], "perplexity": 1.0, "examples": 1, "tokens": 1}
            )
        return between(self, done, result, frozen, meter)

    monkeypatch.setattr(Evaluations, "between", at)
    asked = (
        *("eval.eval_steps=2", "eval.load_best=true", "eval.stopping.patience=2", "train.max_steps=20"),
        *("train.save_steps=3", "eval.before=false"),
    )
    summary = finetune(tiny_run(*asked))
    run = tmp_path / "run"
    assert (summary["status"], summary["steps"], summary["best_step"]) == ("completed", 8, 4)
    assert summary["stopped_early"]["rule"] == "patience"
    assert summary["eval_after"]["loss"] == 0.5
    assert json.loads((run / "summary.json").read_text()) == summary
    assert max(int(entry.name) for entry in (run / "checkpoints").iterdir()) == 8
    written = load_file(run / "adapter" / "adapter_model.safetensors")
    best = read_snapshot(run / "snapshots", "4")[1]["layers"]["attention"]["out"]
    ours = np.stack([written[name] for name in sorted(written) if "o_proj.lora_A" in name])
    np.testing.assert_array_equal(ours, np.swapaxes(best["lora_a"], -1, -2))
    assert not np.array_equal(best["lora_a"], kept[8]["layers"]["attention"]["out"]["lora_a"])
    assert read_score(run / "evaluations", 8).value() == 0.7

    monkeypatch.setattr(story, "_write", lambda *_: run / "adapter")
    again = finetune(tiny_run(*asked), resume=True)  # it has ended, and trains no further
    assert (again["steps"], again["best_step"], again["stopped_early"]) == (8, 4, summary["stopped_early"])
