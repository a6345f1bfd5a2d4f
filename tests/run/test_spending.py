"""A run leaves before a limit is passed, and says when one comes near."""

import http.server
import json
import threading

import pytest

from jaxlean.config import CostSection
from jaxlean.cost.budget import Used
from jaxlean.cost.price import Price
from jaxlean.errors import BudgetReached, ConfigError
from jaxlean.run.preemption import Preemption
from jaxlean.run.spending import Spending

PRICE = Price(3600.0, "a dollar a second")


class Clocked:
    """As much of a meter as a budget asks: a dollar a second."""

    energy_source = "not counted"
    step_seconds: float | None = 2.0

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def used(self):
        return Used(self.seconds, None, self.seconds / 3600)


class Leaving(Preemption):
    """Notes the times that it is told, and keeps no timer."""

    def __init__(self):
        super().__init__()
        self.timers = []

    def leave_in(self, seconds, limit):
        self.timers.append((seconds, limit))


def make(meter, said=None, **cost):
    leaving = Leaving()
    said = said if said is not None else []
    return leaving, Spending(CostSection(**cost), meter, PRICE, leaving, run="runs/a", say=said.append)


def test_without_limits_nothing_is_watched():
    leaving, spending = make(Clocked())
    spending.begin()
    spending.between()
    spending.saved(1.0)
    assert leaving.timers == []


def test_it_leaves_while_a_step_and_a_save_still_fit():
    meter = Clocked()
    leaving, spending = make(meter, max_usd=100.0)
    meter.seconds = 50.0
    spending.begin()
    spending.saved(10.0)
    # two steps under way, one more, a save of 10 seconds
    meter.seconds = 100 - (2 * 2 + 2 + 10) - 1
    spending.between()
    meter.seconds += 1
    with pytest.raises(BudgetReached, match=r"84% of cost\.max_usd=100: another step does not fit"):
        spending.between()
    seconds, limit = leaving.timers[-1]
    assert seconds == pytest.approx(50 - (2 * 2 + 10), abs=0.3)
    assert limit == "cost.max_usd=100 is reached"


def test_a_resumed_run_that_has_spent_it_does_nothing():
    _, spending = make(Clocked(101.0), max_usd=100.0)
    with pytest.raises(BudgetReached, match=r"101% of cost\.max_usd=100"):
        spending.begin()


def test_of_several_processes_only_the_first_decides():
    spending = Spending(CostSection(max_usd=1.0), Clocked(5.0), PRICE, Leaving(), run="a", say=print, active=False)
    spending.begin()
    spending.between()


def test_a_limit_of_what_is_not_known_is_told_at_the_start():
    with pytest.raises(ConfigError, match=r"cost\.max_kwh needs to know the energy"):
        make(Clocked(), max_kwh=1.0)


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *told):
        pass


@pytest.fixture
def hook():
    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    server.told = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def wait_for_alerts():
    for thread in threading.enumerate():
        if thread.name == "jaxlean-webhook":
            thread.join()


def test_alerts_are_said_and_sent_and_their_secret_stays_in_the_environment(hook, monkeypatch):
    monkeypatch.setenv("HOOK_TOKEN", "very-secret-word")
    url = f"http://127.0.0.1:{hook.server_port}/${{HOOK_TOKEN}}"
    said, meter = [], Clocked()
    _, spending = make(meter, said, max_usd=100.0, webhook=url)
    for meter.seconds in (10.0, 50.0, 60.0, 80.0):
        spending.between()
    wait_for_alerts()
    assert said == ["budget: 50% of cost.max_usd=100 is used", "budget: 80% of cost.max_usd=100 is used"]
    told = [body for path, body in hook.told if path == "/very-secret-word"]
    assert sorted(body["share"] for body in told) == [0.5, 0.8]
    assert told[0]["text"].startswith("runs/a: budget: ")
    assert {"run", "limit", "most", "used", "time"} <= told[0].keys()


def test_an_alert_that_does_not_arrive_is_a_line(monkeypatch):
    monkeypatch.setenv("HOOK_TOKEN", "very-secret-word")
    said = []
    _, spending = make(Clocked(60.0), said, max_usd=100.0, webhook="http://127.0.0.1:9/${HOOK_TOKEN}")
    spending.between()
    wait_for_alerts()
    assert any("the alert did not reach cost.webhook" in line for line in said)
    assert not any("very-secret-word" in line for line in said)
    _, spending = make(Clocked(60.0), said, max_usd=100.0, webhook="no address")
    spending.between()
    wait_for_alerts()
    assert "unknown url type" in said[-1]
