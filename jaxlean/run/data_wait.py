"""Devices that wait for data, said aloud while something can still be done about it."""

from jaxlean.config import RunConfig

# Of the time in steps; below it a faster loader would save less than it takes to read about it.
_TOLERATED = 0.05
# The first batches are made while nothing is computed yet.
_AFTER_STEPS = 20


class DataWait:
    """Says once when devices wait for more than 5 % of the steps' time, and what mends it.

    Args:
        config: of the run.
    """

    def __init__(self, config: RunConfig):
        self._config, self._told = config, False

    def told(self, steps: int, share: float) -> str | None:
        """The line to print now, if any.

        Args:
            steps: done.
            share: of the time in steps, that devices waited for the next batch, 0 to 1.
        """
        if self._told or steps < _AFTER_STEPS or share <= _TOLERATED:
            return None
        self._told = True
        return f"data: devices wait for the next batch {share:.0%} of the time; {self._fix()}"

    def _fix(self) -> str:
        data = self._config.data
        if data.streaming:
            return "data.streaming=false reads and tokenizes all rows before the first step"
        if data.image_column is not None:
            return (
                "pictures of the size that the model takes are decoded faster (write them so once), as are more cores"
            )
        return "batches are laid out by one thread beside the steps: give it a core of its own, or larger steps"
