"""A run that can wait begins when electricity is greenest, or cheapest (`cost.start`)."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.cost.forecast import Start, best_start, quantities, read_forecast
from jaxlean.cost.hardware import Device
from jaxlean.cost.price import watts
from jaxlean.errors import ConfigError
from jaxlean.plan.here import here, target_of
from jaxlean.plan.plan import plan
from jaxlean.run.units import show_energy, show_seconds, show_usd

_UNITS = {"gco2e_per_kwh": "gCO2e/kWh", "usd_per_kwh": "USD/kWh", "usd_per_hour": "USD/h"}
# A clock that is set, or a machine that slept, is noticed after so many seconds.
_LOOK_SECONDS = 60.0


def wait_for_start(
    config: RunConfig,
    *,
    say: Callable[[str], Any],
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], Any] = time.sleep,
) -> Start | None:
    """Wait until it is time; holds no device meanwhile.

    Args:
        config: of the run.
        say: prints a line.
        now, sleep: the clock.

    Returns:
        what was chosen; None where the config has no `cost.start`.

    Raises:
        ConfigError: no forecast, one that does not reach, or a job that cannot be planned here.
    """
    cost = config.cost
    if cost.start is None:
        return None
    if cost.forecast is None:
        raise ConfigError("cost.start needs to know what will be", fix="cost.forecast=FILE (or a URL)")
    forecast = read_forecast(cost.forecast, quantities(cost.start))  # before the job is planned, which takes its time
    device, num = here(cost.hardware)
    hours = cost.start_hours if cost.start_hours is not None else _planned_hours(config, device, num)
    start = best_start(cost.start, forecast, hours, now())
    say(_line(cost.start, start, hours, now(), watts(device, num)))
    while (left := (start.time - now()).total_seconds()) > 0:
        sleep(min(left, _LOOK_SECONDS))
    return start


def _planned_hours(config: RunConfig, device: Device | None, num_devices: int) -> float:
    fix = "cost.start_hours=... says how long it takes"
    target = target_of(device, num_devices, why="how long will the job take", fix=fix)
    winner = plan(config, [target]).winner
    if winner is None or winner.hours is None:
        raise ConfigError("how long will the job take? It could not be planned for what is here", fix=fix)
    return winner.hours


def _line(asked: str, start: Start, hours: float, now: datetime, power: float | None) -> str:
    unit = _UNITS[start.quantity]
    wait = max((start.time - now).total_seconds(), 0.0)
    when = "now" if wait < 1 else f"{start.time.astimezone():%Y-%m-%d %H:%M}, in {show_seconds(wait)}"
    text = (
        f"start: {asked}: {when}; {start.value:.4g} {unit} on average over the {show_seconds(hours * 3600)} of the job"
    )
    if start.now is None or start.saved is None:
        return text
    text += f", {start.now:.4g} now: {start.saved:.0%} less"
    less = start.now - start.value
    if start.quantity == "usd_per_hour":
        return f"{text}, {show_usd(less * hours)} saved"
    if power is None:
        return text
    kwh = power * hours / 1000
    saved = f"{less * kwh:,.3g} gCO2e" if start.quantity == "gco2e_per_kwh" else show_usd(less * kwh)
    return f"{text}, {saved} of {show_energy(kwh)} saved"
