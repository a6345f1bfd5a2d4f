"""What a run may cost, as it is said in a config."""

import pytest

from jaxlean.config import build
from jaxlean.config.cost import START
from jaxlean.errors import ConfigError


@pytest.mark.parametrize("when", ["greenest within 12h", "cheapest within 1.5 hours", "greenest within 90 min"])
def test_when_it_begins(when):
    assert build({"cost": {"start": when}}).cost.start == when
    assert START.fullmatch(when)[1] in ("greenest", "cheapest")


@pytest.mark.parametrize("when", ["now", "greenest", "greenest within", "best within 12h", "greenest within -1h"])
def test_when_it_cannot_begin(when):
    with pytest.raises(ConfigError, match="greenest within 12h"):
        build({"cost": {"start": when}})


@pytest.mark.parametrize(
    ("key", "value"), [("max_usd", 0), ("max_hours", -1), ("pue", 0.5), ("alert_at", [1.5]), ("pricing", "free")]
)
def test_limits_are_limits(key, value):
    with pytest.raises(ConfigError, match=key):
        build({"cost": {key: value}})


def test_one_tag_is_a_list_of_one():
    assert build({"cost": {"tags": "team-a"}}).cost.tags == ["team-a"]
    assert build({"cost": {"prices": "mine.yaml"}}).cost.hardware == "mine.yaml"


def test_a_webhooks_secret_does_not_stand_in_a_config():
    with pytest.raises(ConfigError, match=r"\$\{") as told:
        build({"cost": {"webhook": "https://me:word@hooks.example/a"}})
    assert "word@" not in str(told.value)
    assert build({"cost": {"webhook": "https://hooks.example/${HOOK}"}}).cost.webhook
