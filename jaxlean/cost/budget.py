"""What a run may cost: dollars, kilowatt-hours, hours; how much of it is gone, and when it will be.

Reckoning alone; `run.spending` stops the run.
"""

from dataclasses import dataclass

from jaxlean.config import CostSection
from jaxlean.errors import ConfigError

_KEYS = {"usd": "max_usd", "kwh": "max_kwh", "hours": "max_hours"}


@dataclass(frozen=True)
class Used:
    """What a run has used so far; None where that is not known.

    Args:
        usd, kwh, hours: over all its processes, earlier ones included.
    """

    usd: float | None
    kwh: float | None
    hours: float


@dataclass(frozen=True)
class Limit:
    """One limit and how much of it is gone.

    Args:
        key: of the config: "max_usd".
        most: what the config allows.
        used: of it.
    """

    key: str
    most: float
    used: float

    @property
    def share(self) -> float:
        """Of the limit, that is gone; above 1: overshot."""
        return self.used / self.most

    def __str__(self) -> str:
        return f"{self.share:.0%} of cost.{self.key}={self.most:g}"


class Budget:
    """The limits of a run.

    Args:
        cost: the config's section.

    Attributes:
        told: shares that were alerted, by key.
    """

    def __init__(self, cost: CostSection):
        self._most = {name: value for name, key in _KEYS.items() if (value := getattr(cost, key)) is not None}
        self._alert_at = sorted(set(cost.alert_at))
        self.told: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._most)

    def check(self, used: Used, *, price: str, energy: str) -> None:
        """Before anything is spent: each limit is of something that is known.

        Args:
            used: at the start.
            price, energy: where they are from, or why they are not known.

        Raises:
            ConfigError: a limit that could never be reached, since nothing counts it.
        """
        for name, source, fix in (
            ("usd", price, "cost.usd_per_hour=..., or cost.max_hours instead"),
            ("kwh", energy, "`watts` in your table (cost.hardware), or cost.max_hours instead"),
        ):
            if name in self._most and getattr(used, name) is None:
                raise ConfigError(
                    f"cost.{_KEYS[name]} needs to know {'a price' if name == 'usd' else 'the energy'}",
                    got=source,
                    fix=fix,
                )

    def limits(self, used: Used) -> list[Limit]:
        """Each, and how much of it is gone."""
        return [
            Limit(_KEYS[name], most, amount)
            for name, most in self._most.items()
            if (amount := getattr(used, name)) is not None
        ]

    def reached(self, used: Used, *, ahead: float) -> Limit | None:
        """The limit that would be passed, were the run to go on for so many seconds; None: it may.

        Args:
            used: so far.
            ahead: seconds.
        """
        return next((limit for limit in self.limits(used) if self._left(limit, used) <= ahead), None)

    def seconds_left(self, used: Used) -> tuple[float, Limit] | None:
        """Until the first limit, as fast as it has been spent so far, and which it is; None: there is none."""
        found = [(self._left(limit, used), limit) for limit in self.limits(used)]
        return min(found, key=lambda pair: pair[0], default=None)

    def alerts(self, used: Used) -> list[Limit]:
        """Limits that have come to a share in `cost.alert_at`, each once."""
        found = []
        for limit in self.limits(used):
            passed = max((share for share in self._alert_at if limit.share >= share), default=0.0)
            if passed > self.told.get(limit.key, 0.0):
                self.told[limit.key] = passed
                found.append(limit)
        return found

    @staticmethod
    def _left(limit: Limit, used: Used) -> float:
        rate = limit.used / (used.hours * 3600) if used.hours > 0 else 0.0
        return (limit.most - limit.used) / rate if rate > 0 else float("inf")
