"""The best time to begin, against a walk through all minutes; and forecasts in every format."""

import http.server
import json
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.cost.forecast import Forecast, best_start, quantities, read_forecast
from jaxlean.errors import ConfigError

NOW = datetime(2026, 11, 23, 18, 30, tzinfo=UTC)
GREEN, CHEAP = ("gco2e_per_kwh",), ("usd_per_hour", "usd_per_kwh")


def hourly(*values):
    start = NOW.replace(minute=0)
    return Forecast("gco2e_per_kwh", tuple(start + timedelta(hours=i) for i in range(len(values))), values)


def test_a_mean_is_weighted_by_time():
    found = hourly(100, 200, 400)
    assert found.end == NOW.replace(hour=21, minute=0)
    assert found.mean(NOW, timedelta(hours=1)) == 150
    assert found.mean(NOW, timedelta(hours=2, minutes=30)) == pytest.approx((50 + 200 + 400) / 2.5)
    assert found.mean(NOW, timedelta(hours=2, minutes=31)) is None
    assert found.mean(NOW - timedelta(hours=1), timedelta(hours=1)) is None


def test_the_greenest_hour():
    start = best_start("greenest within 12h", hourly(400, 300, 90, 80, 300, 400, 500), 2.0, NOW)
    assert start.time == NOW.replace(hour=20, minute=0)
    assert (start.value, start.now) == (85, pytest.approx((200 + 300 + 45) / 2))
    assert start.saved == pytest.approx(1 - 85 / 272.5)


def test_within_is_a_limit_and_now_is_a_time_too():
    falling = hourly(400, 300, 200, 100, 50)
    assert best_start("greenest within 90 min", falling, 1.0, NOW).time == NOW + timedelta(minutes=90)
    rising = best_start("greenest within 2 hours", hourly(1, 2, 3, 4), 1.0, NOW)
    assert (rising.time, rising.saved) == (NOW, 0)


@given(
    st.lists(st.integers(1, 100), min_size=6, max_size=12),
    st.integers(1, 240),
    st.integers(1, 300),
)
def test_no_minute_is_better(values, within, length):
    found = hourly(*values)
    hours = length / 60
    means = [
        mean
        for minute in range(within + 1)
        if (mean := found.mean(NOW + timedelta(minutes=minute), timedelta(hours=hours))) is not None
    ]
    if not means:
        return
    start = best_start(f"greenest within {within} min", found, hours, NOW)
    assert start.value == pytest.approx(min(means))
    assert NOW <= start.time <= NOW + timedelta(minutes=within)


def test_a_forecast_that_ends_too_early():
    with pytest.raises(ConfigError, match="does not reach as far as the job") as told:
        best_start("greenest within 2h", hourly(1, 2), 5.0, NOW)
    assert "5 hours" in str(told.value)


def test_csv_with_zones_and_without(tmp_path):
    file = tmp_path / "f.csv"
    file.write_text(
        "time,gco2e_per_kwh,usd_per_kwh,note\n"
        "2026-11-23T20:00:00+01:00,412,0.31,windy\n2026-11-23T18:00:00Z,400,,\n2026-11-23 23:00:00,100,0.2,\n"
    )
    found = read_forecast(str(file), GREEN)
    assert found.times[:2] == (NOW.replace(minute=0), NOW.replace(hour=19, minute=0))
    assert found.values[:2] == (400, 412)
    assert all(time.tzinfo == UTC for time in found.times)
    cheap = read_forecast(str(file), CHEAP)
    assert (cheap.quantity, sorted(cheap.values)) == ("usd_per_kwh", [0.2, 0.31])


def test_json_of_the_two_services_and_plain(tmp_path):
    file = tmp_path / "f.json"
    zone = timezone(timedelta(hours=1))
    file.write_text(json.dumps({"zone": "DE", "forecast": [
        {"carbonIntensity": 326, "datetime": NOW.astimezone(zone).isoformat()},
        {"carbonIntensity": 300, "datetime": "2026-11-23T20:30:00.000Z"},
    ]}))  # fmt: skip
    assert read_forecast(str(file), GREEN).values == (326, 300)
    file.write_text(json.dumps({"data": [{"point_time": "2026-11-23T18:30:00+00:00", "value": 1000.0}]}))
    assert read_forecast(str(file), GREEN).values == pytest.approx((453.59237,))
    file.write_text(json.dumps([{"time": "2026-11-23T18:30:00+00:00", "usd_per_hour": 1.5}]))
    assert read_forecast(str(file), CHEAP).quantity == "usd_per_hour"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,usd_per_kwh\n2026-11-23T18:00Z,1\n", ["not in the forecast", "usd_per_kwh", "gco2e_per_kwh"]),
        ("when,gco2e_per_kwh\n1,1\n", ["column `time`", "when"]),
        ("time,gco2e_per_kwh\n", ["empty"]),
        ("time,gco2e_per_kwh\nsoon,1\n", ["a row of the forecast cannot be read", ":2", "soon"]),
        ("time,gco2e_per_kwh\n2026-11-23T18:00Z,much\n", ["cannot be read", "much"]),
        ("time,gco2e_per_kwh\n2026-11-23T18:00Z,1\n2026-11-23T19:00+01:00,2\n", ["two values for one time"]),
        ('{"a": 1}', ["not a forecast", "Electricity Maps or WattTime"]),
        ("{", ["not a forecast"]),
    ],
)
def test_what_is_no_forecast(tmp_path, text, words):
    file = tmp_path / "f"
    file.write_text(text)
    with pytest.raises(ConfigError) as told:
        read_forecast(str(file), GREEN)
    for word in [*words, str(file)]:
        assert word in str(told.value)


def test_no_file_at_all(tmp_path):
    with pytest.raises(ConfigError, match="the forecast cannot be read"):
        read_forecast(str(tmp_path / "none"), GREEN)


class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("auth-token")))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"forecast": [{"datetime": "2026-11-23T18:00:00Z", "carbonIntensity": 7}]}')

    def log_message(self, *told):
        pass


def test_a_service_and_what_opens_it(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Service)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("ZONE", "DE")
        monkeypatch.setenv("JAXLEAN_FORECAST_HEADER", "auth-token: very-secret-word")
        found = read_forecast(f"http://127.0.0.1:{server.server_port}/v3?zone=${{ZONE}}", GREEN)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.values == (7,)
    assert server.asked == [("/v3?zone=DE", "very-secret-word")]


def test_what_is_to_be_least():
    assert quantities("greenest within 12h") == GREEN
    assert quantities("cheapest within 12h") == CHEAP
