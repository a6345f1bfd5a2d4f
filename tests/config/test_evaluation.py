"""The `eval` section: what is accepted, and what is refused."""

import pytest

from jaxlean import config
from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError

HELD_OUT = "data.eval=rows.jsonl"


def test_few_shot_rows_may_be_none_of_them() -> None:
    assert config.load(None, ["eval.shots=0"]).eval.shots == 0
    with pytest.raises(ConfigError, match=r"eval\.shots: Input should be greater than or equal to 0"):
        config.load(None, ["eval.shots=-1"])


def test_what_is_decided_by_scores_says_so() -> None:
    assert not RunConfig().eval.remembers
    for asked in ("eval.mode=async", "eval.load_best=true", "eval.stopping.patience=3"):
        assert config.load(None, [asked, "eval.eval_steps=10", HELD_OUT]).eval.remembers


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.mode=async", HELD_OUT], "eval: eval.mode: async needs eval.eval_steps: steps between evaluations"),
        (["eval.load_best=true", HELD_OUT], "eval: eval.load_best needs eval.eval_steps"),
        (["eval.stopping.patience=2", HELD_OUT], "eval: eval.stopping needs eval.eval_steps"),
        (
            ["eval.mode=none", "eval.eval_steps=5", "eval.load_best=true", HELD_OUT],
            "eval.load_best needs evaluations, and eval.mode: none makes none",
        ),
        (["eval.mode=async", "eval.eval_steps=5"], "eval.mode: async needs held-out rows: data.eval"),
        (["eval.stopping={}"], "eval.stopping: eval.stopping names no rule: patience, plateau, divergence or target"),
        (["eval.stopping.divergence=0.9"], "eval.stopping.divergence: Input should be greater than 1"),
        (["eval.stopping.patince=3"], "unknown key: eval.stopping.patince"),
        (["eval.metric=accuracy"], "eval.metric: accuracy is not measured with task: generate, but loss"),
        (
            ["eval.metric=accuracy", "eval.stopping.target=1", "eval.eval_steps=5", "task=classify"],
            "eval.stopping.target is a loss, and eval.metric is accuracy",
        ),
        (["eval.mode=later"], "eval.mode: Input should be 'sync', 'async' or 'none'"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(None, overrides)
    assert message in str(error.value)


def test_trainers_names() -> None:
    given = config.load(
        None,
        [
            HELD_OUT, "eval.eval_steps=5", "eval.load_best_model_at_end=true", "eval.early_stopping_patience=3",
            "eval.early_stopping_threshold=0.01", "eval.metric_for_best_model=eval_loss",
        ],
    )  # fmt: skip
    assert given.eval.load_best
    assert given.eval.metric == "loss"
    assert given.eval.stopping is not None
    assert (given.eval.stopping.patience, given.eval.stopping.min_delta) == (3, 0.01)
    assert config.build(given.model_dump(exclude_unset=True)) == given
    inside = config.load(None, [HELD_OUT, "eval.eval_steps=5", "eval.stopping.early_stopping_patience=3"])
    assert inside.eval.stopping is not None
    assert inside.eval.stopping.patience == 3


def test_a_mode_may_be_turned_off_on_the_command_line() -> None:
    assert config.load(None, [HELD_OUT, "eval.eval_steps=5", "eval.mode=none"]).eval.mode == "none"
