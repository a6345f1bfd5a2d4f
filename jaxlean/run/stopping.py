"""Early stopping: whether a run has had its best, is lost, or will not come where it should. Functions of its scores.

patience      no evaluation of the last n is better than the best before them; what is not a number is not
plateau       the line through the last n falls by next to nothing
divergence    the loss is not a number, or far above the best
target        even the lower bound of where the curve ends is above another run's loss (`run/learning_curve.py`)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlean.config import StoppingSection
from jaxlean.run.learning_curve import ending

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Stop:
    """Why a run ends early.

    Args:
        step: of the evaluation that decided.
        rule: patience, plateau, divergence or target.
        message: the reason, in words and numbers.
    """

    step: int
    rule: str
    message: str


def stop_of(
    section: StoppingSection, losses: Points, *, num_steps: int, metric: Points | None = None, more: bool = False
) -> Stop | None:
    """The first rule that ends the run; None while none does.

    Args:
        section: which rules.
        losses: (step, held-out loss), by step.
        num_steps: of the whole run.
        metric: (step, score) that patience and plateau go by; default: the losses.
        more: whether more of it is better.
    """
    if not losses:
        return None
    found = _divergence(section, losses)
    if found is not None or losses[-1][0] < section.min_steps:
        return found
    if metric is not None:
        losses_or_metric = [(step, -value if more else value) for step, value in metric]
    else:
        losses_or_metric = list(losses)
    sound = [(step, value) for step, value in losses_or_metric if math.isfinite(value)]
    sign = -1.0 if more and metric is not None else 1.0
    return (
        _patience(section, losses_or_metric, sign)
        or _plateau(section, sound, sign)
        or _target(section, losses, num_steps)
    )


def best_of(points: Points, *, more: bool = False) -> tuple[int, float] | None:
    """(step, score) of the best, of several the first; None where there is no number.

    >>> best_of([(10, 2.0), (20, 1.5), (30, 1.5), (40, float("nan"))])
    (20, 1.5)
    """
    sound = [(step, value) for step, value in points if math.isfinite(value)]
    return min(sound, key=lambda point: (-point[1] if more else point[1], point[0]), default=None)


def _divergence(section: StoppingSection, losses: Points) -> Stop | None:
    if section.divergence is None:
        return None
    step, last = losses[-1]
    if not math.isfinite(last):
        return Stop(step, "divergence", f"the held-out loss of step {step} is not a number")
    best = best_of(losses)
    assert best is not None, "the last one is a number"
    if last > section.divergence * best[1]:
        what = f"the held-out loss {last:.4f} of step {step} is above {section.divergence:g} x {best[1]:.4f}"
        return Stop(step, "divergence", f"{what}, the best, of step {best[0]}")
    return None


def _patience(section: StoppingSection, points: Points, sign: float) -> Stop | None:
    if section.patience is None:
        return None
    best, since, counted = math.inf, 0, 0
    for step, value in points:
        if math.isfinite(value) and (value < best - section.min_delta or best == math.inf):
            best, since, counted = value, step, 0
        else:
            counted += 1
    if counted < section.patience:
        return None
    if best == math.inf:
        return Stop(points[-1][0], "patience", f"none of {counted} evaluations came to a number")
    by = f" by more than {section.min_delta:g}" if section.min_delta else ""
    num = f"{counted} evaluations" if counted > 1 else "the evaluation"
    what = f"{num} after step {since}, whose {sign * best:.4f} is the best, not better{by}"
    return Stop(points[-1][0], "patience", what)


def _plateau(section: StoppingSection, points: Points, sign: float) -> Stop | None:
    if section.plateau is None or len(points) < section.plateau_window:
        return None
    window = points[-section.plateau_window :]
    steps, values = (np.asarray(column, np.float64) for column in zip(*window, strict=True))
    away = steps - steps.mean()
    falls = -float((away * values).sum() / (away**2).sum()) * float(steps[-1] - steps[0])
    if falls >= section.plateau:
        return None
    how = "falls" if sign > 0 else "rises"
    what = f"the line through the last {len(window)} evaluations {how} by {falls:.4f}, less than {section.plateau:g}"
    return Stop(window[-1][0], "plateau", what)


def _target(section: StoppingSection, losses: Points, num_steps: int) -> Stop | None:
    if section.target is None:
        return None
    ends = ending(losses, num_steps)
    if ends is None:
        return None
    bound = float(np.quantile(ends, 1 - section.confidence))
    if bound <= section.target:
        return None
    step = losses[-1][0]
    what = f"this run will not beat {section.target:g}: its curve ends at {float(np.median(ends)):.4f}"
    return Stop(step, "target", f"{what}, and {section.confidence:.0%} sure not below {bound:.4f}")
