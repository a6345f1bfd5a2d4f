"""When to begin: what a kilowatt-hour will emit or cost in the hours to come, and the stretch of them that is the best.

    time,gco2e_per_kwh,usd_per_kwh          CSV; a row holds from its time until the next one's
    2026-11-23T18:00:00+01:00,412,0.31

or JSON as Electricity Maps (`{"forecast": [{"datetime": ..., "carbonIntensity": ...}]}`) and WattTime
(`{"data": [{"point_time": ..., "value": ...}]}`, pounds per MWh) give it, from a file or a URL.
"""

import csv
import io
import json
import os
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from jaxlean.config.cost import START
from jaxlean.errors import ConfigError
from jaxlean.redact import expand, hidden

Quantity = Literal["gco2e_per_kwh", "usd_per_kwh", "usd_per_hour"]
# What is least where it is the greenest, or the cheapest: the first that the forecast has.
_LEAST: dict[str, tuple[Quantity, ...]] = {
    "greenest": ("gco2e_per_kwh",),
    "cheapest": ("usd_per_hour", "usd_per_kwh"),
}
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_GRAMS_PER_POUND = 453.59237
_SECONDS = 20.0


@dataclass(frozen=True)
class Forecast:
    """What will be, from each time until the next.

    Args:
        quantity: of which there are values.
        times: rising, with a time zone; the last value holds as long as the one before it did.
        values: one for each time.
    """

    quantity: Quantity
    times: tuple[datetime, ...]
    values: tuple[float, ...]

    @property
    def end(self) -> datetime:
        """Until when anything is known."""
        last = self.times[-1] - self.times[-2] if len(self.times) > 1 else timedelta(hours=1)
        return self.times[-1] + last

    def mean(self, start: datetime, length: timedelta) -> float | None:
        """Over a stretch of time; None where a part of it is not known."""
        if start < self.times[0] or start + length > self.end or length <= timedelta(0):
            return None
        total = 0.0
        for time, after, value in zip(self.times, (*self.times[1:], self.end), self.values, strict=True):
            both = min(after, start + length) - max(time, start)
            total += max(both.total_seconds(), 0.0) * value
        return total / length.total_seconds()


@dataclass(frozen=True)
class Start:
    """When to begin.

    Args:
        time: the best.
        quantity: that is least then.
        value: its mean over the job.
        now: its mean, were the job to begin at once; None where the forecast does not say.
    """

    time: datetime
    quantity: Quantity
    value: float
    now: float | None

    @property
    def saved(self) -> float | None:
        """Share of what it would be now; 0: nothing."""
        return None if not self.now else 1 - self.value / self.now


def quantities(asked: str) -> tuple[Quantity, ...]:
    """What is to be least, for a `cost.start`: the first that a forecast has."""
    return _LEAST[asked.split()[0]]


def best_start(asked: str, found: Forecast, hours: float, now: datetime) -> Start:
    """The best time to begin.

    Args:
        asked: `cost.start`, as "greenest within 12h".
        found: the forecast, of one of its `quantities`.
        hours: that the job takes.
        now: with a time zone.

    Raises:
        ConfigError: the forecast ends before the job would, whenever it begins.
    """
    said = START.fullmatch(asked.strip())
    assert said is not None, asked
    within, length = float(said[2]) * _UNITS[said[3][0]], timedelta(hours=hours)
    latest = now + within
    # a mean over a moving stretch is least where one of its ends meets a change of the values, or an end of the range
    ends = {now, latest, *found.times, *(time - length for time in (*found.times, found.end))}
    means = [(found.mean(time, length), time) for time in sorted(ends) if now <= time <= latest]
    known = [(value, time) for value, time in means if value is not None]
    if not known:
        raise ConfigError(
            "the forecast does not reach as far as the job",
            where="cost.forecast",
            got=f"{found.times[0].isoformat()} to {found.end.isoformat()}",
            wanted=f"from {now.isoformat(timespec='seconds')}, for the {hours:.3g} hours of the job",
            fix="a newer forecast, or no cost.start",
        )
    value, time = min(known)
    return Start(time, found.quantity, value, found.mean(now, length))


def read_forecast(place: str, wanted: Sequence[Quantity]) -> Forecast:
    """From a file or a URL.

    Args:
        place: a path or an address; `${NAME}` in it is filled in from the environment. A header for it may stand in
            the variable JAXLEAN_FORECAST_HEADER, as "auth-token: ...".
        wanted: the quantities that would do, the best first.

    Raises:
        ConfigError: it cannot be read, or has none of them.
    """
    text = _text(place)
    rows = _json(text, place) if text.lstrip()[:1] in "{[" else _csv(text, place)
    quantity = next((name for name in wanted if any(row.get(name) is not None for row in rows)), None)
    if quantity is None:
        had = sorted({name for row in rows for name in row if name != "time"})
        raise ConfigError("not in the forecast", where=hidden(place), got=", ".join(had), wanted=" or ".join(wanted))
    points = sorted((row["time"], row[quantity]) for row in rows if row.get(quantity) is not None)
    if len({time for time, _ in points}) < len(points):
        raise ConfigError("the forecast has two values for one time", where=hidden(place))
    times, values = zip(*points, strict=True)
    return Forecast(quantity, times, values)


def _text(place: str) -> str:
    try:
        if "://" not in place:
            return Path(place).expanduser().read_text(encoding="utf-8-sig")
        name, _, value = os.environ.get("JAXLEAN_FORECAST_HEADER", "").partition(":")
        headers = {name.strip(): value.strip()} if name.strip() else {}
        with urllib.request.urlopen(urllib.request.Request(expand(place), headers=headers), timeout=_SECONDS) as answer:
            return str(answer.read().decode("utf-8-sig"))
    except (OSError, ValueError) as error:  # what urllib raises is an OSError; ValueError: no address, or no text
        raise ConfigError("the forecast cannot be read", where=hidden(place), got=hidden(str(error))) from None


def _csv(text: str, place: str) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
        if "time" not in row:
            raise ConfigError("a forecast has a column `time`", where=hidden(place), got=", ".join(filter(None, row)))
        numbers = {
            name: value for name, value in row.items() if name in ("gco2e_per_kwh", "usd_per_kwh", "usd_per_hour")
        }
        rows.append(_row(row["time"], numbers, f"{hidden(place)}:{number}"))
    if not rows:
        raise ConfigError("the forecast is empty", where=hidden(place))
    return rows


def _json(text: str, place: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
        if isinstance(found, list):
            return [_row(row["time"], {k: v for k, v in row.items() if k != "time"}, hidden(place)) for row in found]
        if "forecast" in found:
            pairs = [(row["datetime"], {"gco2e_per_kwh": row["carbonIntensity"]}) for row in found["forecast"]]
        else:
            pairs = [
                (row["point_time"], {"gco2e_per_kwh": float(row["value"]) * _GRAMS_PER_POUND / 1000})
                for row in found["data"]
            ]
    except (ValueError, KeyError, TypeError) as error:
        wanted = "CSV with time and gco2e_per_kwh, or JSON of Electricity Maps or WattTime"
        raise ConfigError("not a forecast", where=hidden(place), got=repr(error), wanted=wanted) from None
    return [_row(time, values, hidden(place)) for time, values in pairs]


def _row(time: Any, values: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        when = datetime.fromisoformat(str(time))
        numbers = {name: float(value) for name, value in values.items() if value not in (None, "")}
    except ValueError as error:
        raise ConfigError("a row of the forecast cannot be read", where=where, got=error) from None
    # a time without a zone is this machine's
    return {"time": (when if when.tzinfo else when.astimezone()).astimezone(UTC), **numbers}
