"""The base's losses: measured once, kept, read again by a resumed run; what sorts by them begins with the easy rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.data.batches import Batches
from jaxlean.errors import RunError
from jaxlean.run import base_losses as module
from jaxlean.run import finetune as story
from jaxlean.run.base_losses import BaseLosses
from jaxlean.run.finetune import finetune
from jaxlean.run.folder import BASE_LOSSES
from jaxlean.run.peers import Peers

pytestmark = pytest.mark.usefixtures("small_machine")

# Eight steps of four microbatches; checkpoints at 3, 6 and 8.
RUN = (
    *("train.max_steps=8", "train.gradient_accumulation_steps=2", "train.save_steps=3", "train.logging_steps=1"),
    *("lora.lora_dropout=0.2", "eval.before=false"),
)


class Crash(BaseException):
    """The process is gone: no handler of a run knows it."""


def losses_of(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize(
    "how",
    [
        ("data.curriculum=loss",),
        ("data.curriculum.difficulty=length", "data.packing=false", "data.curriculum.order=hard_first"),
        ("data.curriculum.pacing=step", "data.curriculum.difficulty=rarity", "data.curriculum.phases=3"),
    ],
)
def test_a_run_cut_off_and_resumed_is_the_same_run(how: tuple[str, ...], tiny_run: Any, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    finetune(tiny_run(*RUN, *how, f"output_dir={whole}"))
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Crash):
        after = Batches.__next__

        def broken(self: Batches) -> Any:
            if self.step == 5:
                raise Crash
            return after(self)

        patched.setattr(Batches, "__next__", broken)
        finetune(tiny_run(*RUN, *how))
    with pytest.MonkeyPatch.context() as patched:

        def never(*args: Any) -> None:
            raise AssertionError("what was measured is read, not measured again")

        patched.setattr(module, "row_losses", never)
        summary = finetune(tiny_run(*RUN, *how), resume=True)
    assert summary["steps"] == 8
    assert losses_of(run) == losses_of(whole)
    assert len(losses_of(run)) == 8
    adapters = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (run, whole)]
    assert adapters[0] == adapters[1]
    assert (run / BASE_LOSSES).exists() == ("data.curriculum=loss" in how)


def test_easy_rows_come_first(tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curriculum = ("data.curriculum.difficulty=loss", "data.curriculum.start=0.3", "data.curriculum.floor=0")
    first, seen, batches_of = {}, [], story.batches_of

    def noted(*args: Any, **how: Any) -> Batches:
        seen.append(batches_of(*args, **how))
        return seen[-1]

    for order in ("easy_first", "hard_first"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(story, "batches_of", noted)
            finetune(
                tiny_run(*RUN, *curriculum, f"data.curriculum.order={order}", "data.packing=false"), overwrite=True
            )
        with np.load(tmp_path / "run" / BASE_LOSSES) as kept:
            losses = kept["losses"]
        steps = seen[-1].steps
        first[order] = losses[np.concatenate([steps.row(i) for i in range(steps.rows)])].mean()
    assert losses.shape == (24,)
    assert first["easy_first"] < np.quantile(losses, 0.3)
    assert first["hard_first"] > np.quantile(losses, 0.7)
    assert "curriculum: the base's loss of 24 rows in " in capsys.readouterr().out


def test_what_is_kept_is_of_these_rows_and_whole(tiny_run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from jaxlean.data.tokenize import Ragged, Tokens

    config = tiny_run(f"output_dir={tmp_path}")
    rows, others = (Ragged.of([Tokens(np.arange(n, dtype=np.int32), np.ones(n, bool))]) for n in (4, 5))
    measured: list[int] = []
    monkeypatch.setattr(module, "row_losses", lambda *args: np.array([float(measured.append(1) or len(measured))]))

    def asked(examples: Ragged, *, resume: bool = True) -> float:
        found = BaseLosses(config, None, Peers(), resume=resume, say=lambda line: None)
        losses = found(None, examples)
        found.keep()
        return float(losses[0])

    assert asked(rows) == 1, "none are there"
    assert asked(rows) == 1
    assert asked(others) == 2, "those that are there are of other rows"
    assert asked(others, resume=False) == 3, "another run measures for itself"
    file = tmp_path / BASE_LOSSES
    file.write_bytes(file.read_bytes()[:100])
    assert asked(others) == 4
    assert not list(tmp_path.glob("*.tmp*")), "nothing half-written is left"
    file.unlink()
    tmp_path.joinpath(BASE_LOSSES).mkdir()
    with pytest.raises(RunError, match=r"(?s)cannot be written.*base_losses"):
        asked(rows)
