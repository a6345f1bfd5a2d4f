"""A planner that answers at once: seconds and bytes of a step by what its config says."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from jaxlean.config import RunConfig, build
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.search import Row
from jaxlean.plan.target import parse
from jaxlean.plan.workers import Job

Step = Callable[[RunConfig, str], tuple[float, float]]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Step], list[Job]]:
    """`planned(step)`: (a config, a target) -> (seconds, bytes) of a step; gives the jobs that were asked for."""

    def use(step: Step) -> list[Job]:
        asked: list[Job] = []

        def run(jobs: Sequence[Job], **how: Any) -> Iterator[Row]:
            for job in jobs:
                asked.append(job)
                config, target = build(job.config), parse(job.target)
                train = config.train
                candidate = Candidate(
                    (1, 1, 1, 1, 1), train.per_device_train_batch_size, train.gradient_accumulation_steps, "float32",
                    config.model.quantization, "full" if train.remat == "auto" else str(train.remat),
                )  # fmt: skip
                seconds, memory = step(config, job.target)
                if seconds < 0:
                    note = "the compiler failed: a bug"
                    yield Row(job.target, "failed", candidate, note=note, variant=job.variant)
                    continue
                capacity = target.capacity
                status = "fits" if capacity is None or memory <= capacity else "too large"
                yield Row(job.target, status, candidate, memory, capacity, seconds, variant=job.variant)

        monkeypatch.setattr("jaxlean.audit.audit.run", run)
        return asked

    return use
