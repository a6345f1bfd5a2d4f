"""Schedulers and warm-ups of other projects."""

import pytest

from jaxlean.convert import schedule
from jaxlean.convert.row import UNSET


@pytest.mark.parametrize(
    ("name", "keys", "kind", "settings"),
    [
        ("linear", {}, "carried", {"train.lr_scheduler_type": "linear"}),
        ("cosine", {}, "carried", {"train.lr_scheduler_type": "cosine"}),
        ("SchedulerType.COSINE", {}, "carried", {"train.lr_scheduler_type": "cosine"}),
        ("constant", {}, "carried", {"train.lr_scheduler_type": "constant", "train.warmup_steps": 0}),
        ("constant_with_warmup", {}, "carried", {"train.lr_scheduler_type": "constant"}),
        ("cosine_with_restarts", {"num_cycles": 4}, "carried", {"train.num_cycles": 4}),
        ("cosine_with_restarts", {}, "carried", {"train.num_cycles": 1}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}, "carried", {"train.min_lr_ratio": 0.1}),
        ("cosine_with_min_lr", {"min_lr": 2e-5}, "carried", {"train.min_lr_ratio": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 20}, "carried", {"train.decay_ratio": 0.2}),
        ("polynomial", {}, "carried", {"train.lr_scheduler_type": "linear"}),
        ("polynomial", {"power": 2}, "missing", {"train.lr_scheduler_type": "linear"}),
        ("inverse_sqrt", {}, "missing", {"train.lr_scheduler_type": "cosine"}),
        ("of_mine", {}, "missing", {"train.lr_scheduler_type": "cosine"}),
    ],
)
def test_schedulers(source, name, keys, kind, settings) -> None:
    values = {f"lr_scheduler_kwargs__{key}": value for key, value in keys.items()}
    outcome = schedule.scheduler(name, source(learning_rate=2e-4, max_steps=100, **values))
    assert outcome.kind == kind
    assert outcome.settings.items() >= {key: pytest.approx(value) for key, value in settings.items()}.items()


def test_a_floor_that_is_not_said_is_to_be_looked_at(source) -> None:
    assert "train.min_lr_ratio" in schedule.scheduler("cosine_with_min_lr", source()).check
    assert "train.decay_ratio" in schedule.scheduler("warmup_stable_decay", source()).check


@pytest.mark.parametrize(
    ("value", "rest", "kind", "settings"),
    [
        (10, {}, "carried", {"train.warmup_steps": 10}),
        (0, {}, "carried", {"train.warmup_steps": 0}),
        (0.1, {}, "carried", {"train.warmup_ratio": 0.1}),
        (0, {"warmup_ratio": 0.2}, "idle", {}),
        (10, {"lr_scheduler_type": "constant"}, "idle", {}),
    ],
)
def test_warmup_steps(source, value, rest, kind, settings) -> None:
    outcome = schedule.warmup_steps(value, source(warmup_steps=value, **rest))
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_warmup_ratio_yields_to_steps(source) -> None:
    assert schedule.warmup_ratio(0.1, source()).settings == {"train.warmup_ratio": 0.1}
    assert schedule.warmup_ratio(0.1, source(warmup_steps=5)).kind == "idle"


def test_trainer_has_no_warmup_unless_it_is_told(source) -> None:
    assert schedule.no_warmup(source()) == 0
    assert schedule.no_warmup(source(warmup_ratio=0.1)) is UNSET


def test_keys_of_the_scheduler_are_told_with_it_and_others_apart(source) -> None:
    assert schedule.scheduler_setting(2, source(lr_scheduler_kwargs__num_cycles=2)).kind == "carried"
    assert "odd" in schedule.scheduler_setting(2, source(lr_scheduler_kwargs__odd=2)).note


def test_steps_or_a_share_of_them(source) -> None:
    assert schedule.steps_or_epochs(-1, source()).kind == "idle"
    assert schedule.steps_or_epochs(7, source()).settings == {"train.max_steps": 7}
    assert schedule.share_of_steps(0.05, source(max_steps=90)) == 5
    assert schedule.share_of_steps(0.05, source(max_steps=-1)) is None
