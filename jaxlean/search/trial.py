"""One trial while it runs in a program that others share: its rows, its learning rates, what it has taken."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.data.batches import Batches
from jaxlean.search.inputs import constants, learning_rates

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked


@dataclass
class Trial:
    """Where a trial stands.

    Args:
        asked: Optuna's.
        config: the trial's own.
        batches: the trial's own.
        key: of the program that it runs in.
        nbytes: of what it trains.

    Attributes:
        done: steps.
        seconds: wall time that it took; of what several take together its share.
        quality: what was found on the held-out rows at the last rung.
    """

    asked: "Asked"
    config: RunConfig
    batches: Batches
    key: str
    nbytes: int = 0
    done: int = 0
    seconds: float = 0.0
    quality: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_steps = self.batches.num_steps
        self._rates = learning_rates(self.config, self.num_steps)
        self._constants = constants(self.config, list(self.config.search.space))

    @property
    def scale(self) -> Any:
        """What its adapters are multiplied with; None without."""
        return self._constants.get("lora_scale")

    def inputs(self) -> dict[str, np.generic]:
        """The arguments of its next step beside the rows."""
        return self._constants | {"learning_rate": self._rates[self.done]}
