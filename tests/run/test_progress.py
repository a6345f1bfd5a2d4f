"""The bar, and the plain lines where there is no terminal."""

import io
import time

import pytest
from rich.console import Console

from jaxlean.run import progress
from jaxlean.run.progress import Progress


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def console(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def test_plain_lines_only_when_there_is_news(clock):
    out = console(terminal=False)
    with Progress(4, console=out) as bar:
        for step in (1, 2, 3, 4):
            clock.now += 10
            bar.update(step)
        bar.report(4, loss=1.25, tokens_per_second=1234.5, memory_bytes=2**30, usd=0.0012)
    assert out.file.getvalue() == "step 4/4  loss 1.2500  1,234 tokens/s  1.0 GiB  $0.0012  0.00 s left\n"


def test_time_left_leaves_the_compiling_step_out_and_starts_where_the_run_went_on(clock):
    bar = Progress(110, start_step=100, console=console(terminal=False))
    assert bar.seconds_left() is None
    clock.now += 1000  # compiles
    bar.update(101)
    assert bar.seconds_left() is None
    clock.now += 2
    bar.update(102)
    assert bar.seconds_left() == pytest.approx(2 * 8)


def test_a_number_not_read_yet_is_a_dash(clock):
    out = console(terminal=False)
    bar = Progress(10, console=out)
    bar.update(1)
    bar.report(1, loss=2.0)
    assert out.file.getvalue() == "step 1/10  loss 2.0000  - tokens/s  -  -  - left\n"


def test_the_numbers_of_a_step_may_come_later_and_stay_until_the_next(clock):
    out = console(terminal=False)
    bar = Progress(10, console=out)
    for step in (1, 2, 3):
        clock.now += 10
        bar.update(step)
    bar.report(1, loss=2.0, usd=0.5)
    bar.report(2, loss=1.0)
    first, second = out.file.getvalue().splitlines()
    assert first.startswith("step 1/10  loss 2.0000  - tokens/s  -  $0.50  1 min 10 s left")
    assert second.startswith("step 2/10  loss 1.0000  - tokens/s  -  $0.50")


def test_the_bar_shows_step_total_and_the_last_numbers(clock):
    out = console(terminal=True)
    with Progress(10, console=out) as bar:
        bar.update(1)
        bar.update(2)
        bar.report(1, loss=2.5, tokens_per_second=10, usd=0.5)
        bar.message("evaluating")
    text = out.file.getvalue()
    assert "2/10" in text
    assert "loss 2.5000" in text
    assert "$0.50" in text
    assert "evaluating" in text


def test_the_bar_can_be_turned_off_in_a_terminal():
    out = console(terminal=True)
    with Progress(10, bar=False, console=out) as bar:
        bar.update(1)
        bar.update(2)
        bar.report(2, loss=1.0)
    assert out.file.getvalue().startswith("step 2/10")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_without_news_costs_little(terminal):
    with Progress(2000, console=console(terminal=terminal)) as bar:
        start = time.perf_counter()
        for step in range(2000):
            bar.update(step)
        # Measured 2 and 40 us; a step of the smallest model takes milliseconds.
        assert (time.perf_counter() - start) / 2000 < 1e-3
