"""What one sees while it trains: a bar in a terminal, a plain line now and then in a log file."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jaxlean.run.units import show_bytes, show_number, show_seconds, show_usd

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """Step of steps, loss, tokens a second, memory, USD so far, time left.

    `update(step)` is called after every step and costs microseconds; `report` hands over the numbers when the loop
    has them (every `train.logging_steps`), which stay in view until the next ones. In a terminal they are drawn in a
    bar, elsewhere each hand-over is one plain line.

    Args:
        num_steps: steps of the whole run.
        start_step: steps done before this process (a resumed run).
        bar: draw the bar where the output is a terminal (`report.progress`).
        console: default: rich's on stdout.
    """

    def __init__(self, num_steps: int, *, start_step: int = 0, bar: bool = True, console: "Console | None" = None):
        from rich.console import Console

        self._num_steps, self._step = num_steps, start_step
        self._console = console if console is not None else Console()
        self._numbers: dict[str, float | None] = {}
        # The first step of a process compiles: time left is reckoned from its end on.
        self._clock: tuple[int, float] | None = None
        self._bar: Any = None
        if bar and self._console.is_terminal:
            self._bar, self._task = _bar(self._console, num_steps, start_step)
            self._bar.start()

    def update(self, step: int) -> None:
        """Step `step` is under way; called after every step."""
        self._step = step
        if self._clock is None:
            self._clock = (step, time.perf_counter())
        if self._bar is not None:
            # Text is made only when there is something new to say; the bar redraws itself twice a second.
            self._bar.update(self._task, completed=step)

    def report(
        self,
        step: int,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        memory_bytes: float | None = None,
        usd: float | None = None,
    ) -> None:
        """The numbers of a step that is done; it may lie a little behind the one under way.

        Args:
            step: the step they were read at.
            loss, tokens_per_second, memory_bytes, usd: None where not known; the last known one stays in view.
        """
        given = {"loss": loss, "tokens_per_second": tokens_per_second, "memory_bytes": memory_bytes, "usd": usd}
        self._numbers.update({name: value for name, value in given.items() if value is not None})
        if self._bar is not None:
            self._bar.update(self._task, numbers=self._text())
        else:
            self._console.print(f"step {step}/{self._num_steps}  {self._text()}", highlight=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Time to the last step at the speed so far; None before the second step."""
        if self._clock is None or self._step <= self._clock[0]:
            return None
        each = (time.perf_counter() - self._clock[1]) / (self._step - self._clock[0])
        return each * (self._num_steps - self._step)

    def message(self, text: str) -> None:
        """A line above the bar."""
        (self._bar.console if self._bar is not None else self._console).print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar down; what it last showed stays."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _text(self) -> str:
        numbers = self._numbers
        rate = numbers.get("tokens_per_second")
        return "  ".join(
            (
                f"loss {show_number(numbers.get('loss'))}",
                f"{'-' if rate is None else format(rate, ',.0f')} tokens/s",
                show_bytes(numbers.get("memory_bytes")),
                show_usd(numbers.get("usd")),
                f"{show_seconds(self.seconds_left())} left",
            )
        )


def _bar(console: "Console", num_steps: int, start_step: int) -> tuple[Any, Any]:
    from rich import progress

    bar = progress.Progress(
        progress.BarColumn(bar_width=20),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[numbers]}"),
        console=console,
        refresh_per_second=2,
    )
    return bar, bar.add_task("train", total=num_steps, completed=start_step, numbers="compiling")
