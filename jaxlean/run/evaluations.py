"""The evaluations of a run, from before its first step to after its last: by itself, by others, or none (`eval.mode`).

Whoever measures, each score comes to one place, is logged under the step it is of, and decides together with the others
when the run stops early (`run/stopping.py`) and which step is written at its end. What a resumed run must know of that
lies in the run's folder, a file a score (`run/score_files.py`).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jaxlean import tree
from jaxlean.config import RunConfig
from jaxlean.cost.phases import EVALUATION
from jaxlean.errors import RunError
from jaxlean.hub.load import Model
from jaxlean.models.cpu import release
from jaxlean.run.async_evaluation import SCORES, Handed, has_own_frozen, origin_of
from jaxlean.run.evaluate import Evaluator
from jaxlean.run.manifest import Damaged, Unreadable
from jaxlean.run.meter import Meter
from jaxlean.run.metrics import Metrics, logged_steps
from jaxlean.run.peers import Peers
from jaxlean.run.quality import TaskEvaluator
from jaxlean.run.score_files import Score, has_score, read_score, remove_score, scored_steps, write_score
from jaxlean.run.snapshots import FOLDER, FROZEN, Snapshots, read_snapshot
from jaxlean.run.stopping import Stop, best_of, stop_of
from jaxlean.run.summary import Evaluation
from jaxlean.xla.spread import put

_LOOK_SECONDS = 0.1


class Evaluations:
    """What a run's state is worth, and what follows from it. Every process makes this object and calls it alike.

    Args:
        config: of the run.
        folder: output_dir.
        evaluator: None: nothing is evaluated.
        peers: the processes of the run.
        num_steps: of the run.
        metrics: where scores are logged.
        resume: the run goes on in its folder.
        resume_step: scores of later steps are forgotten; None: all.
        say: prints a line.

    Attributes:
        stop: why the run ends early.
        best_step: the step with the best score; after `after`, where `eval.load_best`, the one that is written.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        evaluator: Evaluator | TaskEvaluator | None,
        peers: Peers,
        *,
        num_steps: int,
        metrics: Metrics,
        resume: bool = False,
        resume_step: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self._config, self._section, self._evaluator, self._peers = config, config.eval, evaluator, peers
        self._folder, self._num_steps, self._metrics, self._say = folder, num_steps, metrics, say
        self._is_async = evaluator is not None and self._section.mode == "async"
        self._remembers = evaluator is not None and self._section.remembers
        self._handed: Handed | None = None
        self._snapshots: Snapshots | None = None
        self._checked: int | None = None
        self._refused = 0
        self.stop: Stop | None = None
        self.best_step: int | None = None
        self._scores: dict[int, Score] = {}
        if not self._remembers:
            return
        found = peers.first(lambda: self._kept(resume_step if resume else None))
        self._scores = {said["step"]: Score(**said) for said in found}
        if peers.is_first:
            logged = logged_steps(folder / "metrics.jsonl", "eval_loss")
            for step, score in self._scores.items():  # of those that came after the last line was written
                if step not in logged and score.evaluation is not None:
                    metrics.log(step, _named(score.evaluation))
        if self._is_async or self._section.load_best:
            self._snapshots = Snapshots(
                folder / FOLDER, waiting=self._section.snapshots, scored=self._is_scored, peers=peers,
                came=lambda step: has_score(folder / SCORES, step),
                best=self._best if self._section.load_best else lambda steps: None,
                # of a whole model a second one on the device would be as much as it
                copy_on_device=config.lora is not None or jax.default_backend() == "cpu",
                resume_step=resume_step if resume else None, say=say,
            )  # fmt: skip
        self._choose()

    def _kept(self, resume_step: int | None) -> list[dict[str, Any]]:
        """The scores of earlier processes of this run, up to the step that it goes on from."""
        found = []
        for step in scored_steps(self._folder / SCORES):
            score = read_score(self._folder / SCORES, step)
            if resume_step is None or step > resume_step or score is None or score.refused is not None:
                remove_score(self._folder / SCORES, step)
            else:
                found.append(asdict(score))
        return found

    # ---- before training

    def hand_over_base(self, model: Model, result: tree.Tree, frozen: tree.Tree, mesh: jax.sharding.Mesh) -> None:
        """`eval.mode: async`: say what evaluators must know, and hand over what training starts from.

        Args:
            model: with its adapters.
            result: what is evaluated of the first state, not of a resumed one.
            frozen: what does not train, as a step is handed it.
        """
        if not self._is_async:
            return
        assert self._snapshots is not None
        if has_own_frozen(self._config):
            self._snapshots.write_frozen(release(frozen))
        there = self._peers.first(lambda: self._has(0))
        if self._section.before and not there:
            self._snapshots.hand_over(0, result, whole=True)
        if self._peers.is_first:
            origin = origin_of(self._config, model, mesh, self._folder / FOLDER)
            self._handed = Handed(self._config, self._folder, self._snapshots, origin, say=self._say)

    def before(self, model: Model, result: tree.Tree, frozen: tree.Tree, meter: Meter) -> None:
        """What the base is worth; of `eval.mode: async` evaluators begin with it."""
        if self._handed is not None:
            self._handed.start()
        if self._evaluator is None or self._is_async or not self._section.before or meter.eval_before is not None:
            return
        meter.eval_before = self._evaluator(model, result, frozen)
        self._metrics.log(0, _named(meter.eval_before))

    # ---- between steps

    def between(self, done: int, result: tree.Tree, frozen: tree.Tree, meter: Meter) -> Stop | None:
        """Before each step: evaluate, or hand over, where it is due; why the run is to end here, if it is.

        Args:
            done: steps.
            result: what is evaluated of the state.
            frozen: what does not train.
        """
        begins = self._remembers and self._section.load_best and self._checked is None
        if begins and self._peers.first(lambda: self._lacks_best(done)):
            assert self._snapshots is not None
            self._snapshots.hand_over(done, result)
        every = self._section.eval_steps
        due = self._evaluator is not None and bool(every) and done > 0 and done % (every or 1) == 0
        if due and self._is_async:
            assert self._snapshots is not None
            if not self._peers.first(lambda: self._has(done)):
                self._snapshots.hand_over(done, result)
        elif due and done not in self._scores:
            assert self._evaluator is not None
            with meter.within(EVALUATION):
                found = self._evaluator.loss(result, frozen)
            self._add(Score(done, "", found), result)
        if not self._remembers or not (due or self._checked is None or done % self._config.train.logging_steps == 0):
            return None
        self._collect(done)
        if self._section.stopping is None:
            self._checked = done
            return None
        said = self._peers.first(self._stop)
        self._checked = done
        self.stop = None if said is None else Stop(**said)
        return self.stop

    # ---- after training

    def after(
        self, model: Model, result: tree.Tree, frozen: tree.Tree, done: int, meter: Meter
    ) -> tuple[Evaluation | None, tree.Tree]:
        """(what the run's result is worth, the result).

        Args:
            model: its graph matches `merge(result, frozen)`.
            result: of the last state.
            frozen: what does not train.
            done: steps.
        """
        if self._evaluator is None:
            return None, result
        if self._is_async:
            assert self._snapshots is not None
            if not self._peers.first(lambda: self._is_measured(done)):
                self._snapshots.hand_over(done, result, whole=True)
            if self._peers.is_first:
                self._wait(done)
            there = self._peers.first(lambda: self._is_measured(done))
            if self._peers.is_first and self._snapshots.skipped and self._remembers:
                left = self._snapshots.skipped
                seen = len(self._points("loss"))
                self._say(f"{left} snapshots were left out: evaluators were slower than training; {seen} were scored")
            meter.eval_before = self._peers.first(lambda: self._evaluation(0)) or meter.eval_before
        else:
            there = False
        if not there:
            found = self._evaluator(model, result, frozen)
            self._add(Score(done, "", found), result, ends=True)
        else:
            found = self._peers.first(lambda: self._evaluation(done))
        if not self._section.load_best:
            return found, result
        best = self._peers.first(lambda: self._best_there(done))
        rank = "the best" if best == self.best_step else "the best of those whose state is there"
        if best == done:
            if self.best_step not in (None, done):
                self._say(f"written is the last step, {done}: the state of no better one is there")
            self.best_step = done
            return found, result
        arrays = self._read(best)
        like = tree.flatten(result)
        result = tree.map_with_path(lambda path, x: put(x, like[path].sharding), arrays)
        self.best_step = best
        found = self._peers.first(lambda: self._evaluation(best))
        if self._section.exact_match and "exact_match" not in found:
            found = self._evaluator(model, result, frozen)
            self._metrics.log(best, _named(found))
        self._say(
            f"written is step {best}, whose {self._section.metric} is {rank}, of {len(self._points('loss'))} scored"
        )
        return found, result

    def summary(self) -> dict[str, Any]:
        """What the run's summary says of them."""
        stopped = None if self.stop is None else asdict(self.stop)
        if not self._remembers:
            return {"stopped_early": stopped, "best_step": None, "evaluations": None}
        num = sum(score.evaluation is not None for score in self._scores.values())
        counts: dict[str, Any] = {"mode": self._section.mode, "scored": num}
        if self._is_async and self._snapshots is not None:
            restarted = self._handed.restarted if self._handed is not None else 0
            counts |= {"skipped": self._snapshots.skipped, "refused": self._refused, "restarted": restarted}
        return {"stopped_early": stopped, "best_step": self.best_step, "evaluations": counts}

    def close(self, *, finished: bool = False) -> None:
        """End what training started for it; `finished`: the run will not go on."""
        if self._handed is not None:
            self._handed.close(finished=finished)
        if self._snapshots is not None:
            self._snapshots.close()
            if finished and self._peers.is_first:
                self._snapshots.remove(FROZEN)

    # ---- scores

    def _add(self, score: Score, result: tree.Tree | None = None, *, ends: bool = False, at: int | None = None) -> None:
        """Take up a score.

        Args:
            result: what was measured, where training did it.
            ends: after the last step, which needs no snapshot.
            at: the step that training is at, where it was measured elsewhere.
        """
        step, found = score.step, score.evaluation
        assert found is not None
        if self._remembers:
            self._scores[step] = score
            if self._peers.is_first and result is not None:
                write_score(self._folder / SCORES, score)
            if self._handed is not None:
                self._handed.known(step)
            self._choose()
        self._metrics.log(step, _named(found))
        if not ends and step:
            here = f" (at step {at})" if at is not None and at != step else ""
            self._say(f"step {step}: held-out loss {score.value():.4f}{here}")
        if result is not None and not ends and self._section.load_best and self.best_step == step:
            assert self._snapshots is not None
            self._snapshots.hand_over(step, result)

    def _collect(self, done: int) -> None:
        """Take up what came from elsewhere."""
        for score in self._handed.collect() if self._handed is not None else ():
            if score.refused is not None:
                self._refused += 1
                self._scores[score.step] = score
                self._say(f"the snapshot of step {score.step} was refused: {score.refused}")
                self._choose()
            else:
                self._add(score, at=done)

    def _choose(self) -> None:
        """The best so far."""
        self.best_step = self._best(self._scores)
        if self._snapshots is not None:
            self._snapshots.make_room()

    def _best(self, steps: Iterable[int]) -> int | None:
        """Of steps with a score, those that trained; None where none has a number. Also called by a thread."""
        metric = self._section.metric
        found = best_of([(step, self._scores[step].value(metric)) for step in steps if step], more=metric != "loss")
        return None if found is None else found[0]

    def _points(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of the scores of steps that trained, by step."""
        there = sorted(step for step, score in self._scores.items() if step and score.evaluation is not None)
        return [(step, self._scores[step].value(metric)) for step in there]

    def _stop(self) -> dict[str, Any] | None:
        assert self._section.stopping is not None
        metric = None if self._section.metric == "loss" else self._points(self._section.metric)
        found = stop_of(
            self._section.stopping, self._points("loss"), num_steps=self._num_steps, metric=metric,
            more=metric is not None,
        )  # fmt: skip
        return None if found is None else asdict(found)

    def _best_there(self, done: int) -> int:
        """The best step whose state is there: the last one, or a snapshot that is as it was written."""
        assert self._snapshots is not None
        self._snapshots.settle()
        steps = set(self._scores)
        while (best := self._best(steps)) is not None and best != done:
            try:
                self._read(best)
                return best
            except FileNotFoundError:
                if best == self.best_step:  # of the others none was kept
                    self._say(f"the best snapshot, of step {best}, is gone")
            except Damaged as damage:
                self._say(f"the best snapshot, of step {best}, is not what was written: {damage}")
            steps.remove(best)
        return done

    def _lacks_best(self, done: int) -> bool:
        """Whether the step that the run goes on from is the best and has no snapshot.

        It ended after it had the score and before the snapshot was on disk.
        """
        if self.best_step != done:
            return False
        try:
            read_snapshot(self._folder / FOLDER, str(done))
        except (FileNotFoundError, Damaged):
            return True
        return False

    def _read(self, step: int) -> tree.Tree:
        """A snapshot that may be the result.

        Raises:
            FileNotFoundError, Damaged: as `read_snapshot`.
            RunError: it cannot be read now; another step is not written in its place.
        """
        try:
            return read_snapshot(self._folder / FOLDER, str(step))[1]
        except Unreadable as error:
            raise RunError(
                f"the snapshot of step {step}, the best, cannot be read", where=self._folder / FOLDER / str(step),
                got=error, fix="--resume reads it again; without that folder the best of the others is written",
            ) from error  # fmt: skip

    def _wait(self, done: int) -> None:
        """For scores that are due, while somebody works on them and the time for it lasts."""
        assert self._snapshots is not None
        assert self._handed is not None
        self._snapshots.settle()
        end, told = time.monotonic() + self._section.wait_seconds, False
        while True:
            self._collect(done)
            due = self._snapshots.waiting()
            if not due:
                return
            steps = ", ".join(map(str, due))
            if not self._handed.somebody_works():
                self._say(f"nobody is there to score step {steps}: training measures its result itself")
                return
            if time.monotonic() > end:
                self._say(f"eval.wait_seconds={self._section.wait_seconds:g} are over, and step {steps} not scored")
                return
            if not told:
                self._say(f"waiting for the score of step {steps}")
                told = True
            time.sleep(_LOOK_SECONDS)

    def _evaluation(self, step: int) -> Any:
        score = self._scores.get(step)
        return None if score is None else score.evaluation

    def _is_measured(self, done: int) -> bool:
        """Whether the last step has all that a result is measured by."""
        found = self._evaluation(done)
        return found is not None and (not self._section.exact_match or "exact_match" in found)

    def _has(self, step: int) -> bool:
        """Whether a step has a score, or a snapshot that waits for one."""
        assert self._snapshots is not None
        return step in self._scores or self._snapshots.token(step) is not None

    def _is_scored(self, step: int) -> bool:
        return step in self._scores


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    return {f"eval_{name}": value for name, value in found.items()}
