"""How much of a limit is gone, when it will be reached, and what is said on the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.config import CostSection
from jaxlean.cost.budget import Budget, Used
from jaxlean.errors import ConfigError

HOUR = Used(usd=2.0, kwh=0.5, hours=1.0)


def test_without_limits_there_is_no_budget():
    budget = Budget(CostSection())
    assert not budget
    assert budget.limits(HOUR) == budget.alerts(HOUR) == []
    assert budget.reached(HOUR, ahead=1e9) is None
    assert budget.seconds_left(HOUR) is None


def test_each_limit_knows_its_share():
    budget = Budget(CostSection(max_usd=4.0, max_kwh=5.0, max_hours=2.0))
    assert [(limit.key, limit.share) for limit in budget.limits(HOUR)] == [
        ("max_usd", 0.5), ("max_kwh", 0.1), ("max_hours", 0.5)
    ]  # fmt: skip
    assert str(budget.limits(HOUR)[0]) == "50% of cost.max_usd=4"


def test_the_first_limit_counts_at_the_rate_so_far():
    budget = Budget(CostSection(max_usd=3.0, max_kwh=5.0))
    seconds, limit = budget.seconds_left(HOUR)
    assert (seconds, limit.key) == (pytest.approx(1800), "max_usd")
    assert budget.reached(HOUR, ahead=1799) is None
    assert budget.reached(HOUR, ahead=1801).key == "max_usd"
    over = Used(usd=3.1, kwh=0.1, hours=1.0)
    assert budget.reached(over, ahead=0).share > 1
    assert budget.seconds_left(over)[0] < 0


def test_nothing_used_is_no_rate():
    assert Budget(CostSection(max_usd=1.0)).seconds_left(Used(0.0, None, 0.0))[0] == float("inf")


@pytest.mark.parametrize(("key", "words"), [("max_usd", "a price"), ("max_kwh", "the energy")])
def test_a_limit_of_what_nobody_knows_is_told_before_anything_is_spent(key, words):
    budget = Budget(CostSection(**{key: 1.0}))
    with pytest.raises(ConfigError) as told:
        budget.check(Used(None, None, 0.0), price="no price there", energy="no energy there")
    assert f"cost.{key} needs to know {words}" in str(told.value)
    assert "there" in str(told.value)
    budget.check(Used(0.0, 0.0, 0.0), price="", energy="")


def test_alerts_come_once_each_and_the_highest_alone():
    budget = Budget(CostSection(max_usd=10.0, alert_at=[0.8, 0.5]))

    def alerts(usd):
        return [limit.used for limit in budget.alerts(Used(usd, None, 1.0))]

    assert alerts(4.9) == []
    assert alerts(5.0) == [5.0]
    assert alerts(6.0) == []
    assert alerts(9.0) == [9.0]
    assert alerts(20.0) == []
    assert Budget(CostSection(max_usd=10.0)).alerts(Used(9.0, None, 1.0))[0].share == 0.9


@given(st.floats(0.01, 100), st.floats(0.001, 1000), st.floats(0.001, 100))
def test_after_the_seconds_that_are_left_the_limit_is_there(most, usd, hours):
    budget = Budget(CostSection(max_usd=most))
    used = Used(usd, None, hours)
    seconds, _ = budget.seconds_left(used)
    later = Used(usd + usd / hours * seconds / 3600, None, hours + seconds / 3600)
    assert later.usd == pytest.approx(most)
    assert budget.reached(used, ahead=seconds + 1e-3 * abs(seconds) + 1e-6) is not None
