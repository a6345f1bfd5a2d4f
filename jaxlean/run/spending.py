"""Keeps a run inside its limits (`cost.max_usd`, `max_kwh`, `max_hours`): says when one comes near, and leaves before.

Before each step it is reckoned whether the steps under way and a save still fit; a timer watches what lies between: an
evaluation, a compilation, the writing. Either way the run leaves as if a scheduler had asked it to: saved, and to be
resumed, once the limit is higher.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from jaxlean.config import CostSection
from jaxlean.cost.budget import Budget, Limit
from jaxlean.cost.price import Price
from jaxlean.redact import expand, hidden
from jaxlean.run.meter import AHEAD, Meter
from jaxlean.run.preemption import Preemption

_WEBHOOK_SECONDS = 10.0
# What it takes to end a process after its state is saved: the account, the folders' locks.
_LEAVE_SECONDS = 0.2


class Spending:
    """The limits of one run.

    Args:
        cost: the config's section.
        meter: counts what is used, earlier processes of the run included.
        price: that it counts by.
        preemption: that the run leaves by.
        run: how alerts name it.
        say: prints a line.
        active: whether this process decides; of several the first does.

    Raises:
        ConfigError: a limit of something that nobody knows: dollars without a price.
    """

    def __init__(
        self,
        cost: CostSection,
        meter: Meter,
        price: Price,
        preemption: Preemption,
        *,
        run: str,
        say: Callable[[str], Any],
        active: bool = True,
    ):
        self._budget, self._meter, self._preemption = Budget(cost), meter, preemption
        self._webhook, self._run, self.say = cost.webhook, run, say
        self._active = active and bool(self._budget)
        self._save_seconds = 0.0
        if self._active:
            self._budget.check(meter.used(), price=price.source, energy=meter.energy_source)

    def begin(self) -> None:
        """From here on there is a state to save: watch the time. Raises: BudgetReached, where it is over already."""
        if self._active:
            self.between()
            self._set_timer()

    def between(self) -> None:
        """Before each step: alerts, and whether another step fits.

        Raises:
            BudgetReached: it does not. Of several processes all leave together, after their next step.
        """
        if not self._active:
            return
        used = self._meter.used()
        for limit in self._budget.alerts(used):
            self._alert(limit)
        reached = self._budget.reached(used, ahead=self._reserve + (self._meter.step_seconds or 0.0))
        if reached is not None:
            self._preemption.leave(f"{reached}: another step does not fit")

    def saved(self, seconds: float) -> None:
        """A save took so long."""
        self._save_seconds = max(self._save_seconds, seconds)
        if self._active:
            self._set_timer()  # power and prices of the past say when the limit comes; they drift

    @property
    def _reserve(self) -> float:
        """Seconds that leaving takes: the steps under way, a save, the rest."""
        return AHEAD * (self._meter.step_seconds or 0.0) + self._save_seconds + _LEAVE_SECONDS

    def _set_timer(self) -> None:
        left = self._budget.seconds_left(self._meter.used())
        if left is not None:
            self._preemption.leave_in(left[0] - self._reserve, f"cost.{left[1].key}={left[1].most:g} is reached")

    def _alert(self, limit: Limit) -> None:
        text = f"budget: {limit} is used"
        self.say(text)
        if self._webhook is not None:
            told = {"text": f"{self._run}: {text}", "run": self._run, "limit": limit.key, "most": limit.most}
            told |= {"used": limit.used, "share": limit.share, "time": time.time()}
            url = expand(self._webhook)
            threading.Thread(target=_post, args=(url, told, self.say), name="jaxlean-webhook", daemon=True).start()


def _post(url: str, told: dict[str, Any], say: Callable[[str], Any]) -> None:
    """Send an alert; that it did not arrive is worth a line, not a run."""
    try:
        request = urllib.request.Request(
            url, data=json.dumps(told).encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=_WEBHOOK_SECONDS):
            pass
    except (OSError, ValueError) as error:  # URLError is an OSError
        say(hidden(f"budget: the alert did not reach cost.webhook: {error}"))
