"""Where a learning curve ends: a power law with an offset, fitted to the losses so far, with its doubt.

    loss = a + b * step^-c,  a >= 0, b >= 0

Curves of neural networks fall like that for long (Hestness et al., arXiv 1712.00409; Domhan et al., IJCAI 2015, fit a
dozen such families to single runs, by MCMC). Here the exponent is a grid. For each of its values a and b are a linear
regression, whose posterior under flat priors is known in closed form; the values are weighed by how well they explain
the points. What is drawn from all of that is where a further measurement at the last step may lie, its noise included.
"""

from collections.abc import Sequence

import numpy as np

# Fewer leave three numbers and a noise undetermined.
MIN_POINTS = 6
_EXPONENTS = np.geomspace(0.03, 3.0, 256)
_DRAWS = 4000
_LEAST_NOISE = 5e-4  # of the loss


def ending(points: Sequence[tuple[int, float]], last: int, *, seed: int = 0) -> np.ndarray | None:
    """float64 [draws], ascending: losses that a measurement at the last step may give; None where nothing can be said.

    Args:
        points: (step, loss), steps above 0; losses that are not finite are left out.
        last: the step asked about.
        seed: of the draws.
    """
    there = sorted((step, loss) for step, loss in points if step > 0 and np.isfinite(loss))
    # what a run does at first (a warm-up, moments that are not yet known) is no part of the law
    there = there[len(there) // 4 :] if len(there) >= 2 * MIN_POINTS else there
    if len(there) < MIN_POINTS or last <= there[-1][0]:
        return None
    steps, losses = (np.asarray(column, np.float64) for column in zip(*there, strict=True))
    powers = (steps[None, :] / last) ** -_EXPONENTS[:, None]  # at the last step all are 1
    mean = powers.mean(axis=1, keepdims=True)
    beside = powers - mean
    square = (beside**2).sum(axis=1)
    slope = (beside * (losses - losses.mean())).sum(axis=1) / square
    left = losses - losses.mean() - slope[:, None] * beside
    freedom = len(there) - 2
    # no curve is a power law to more digits than this
    noise = np.maximum((left**2).sum(axis=1) / freedom, (_LEAST_NOISE * np.abs(losses).max()) ** 2)
    # evidence of an exponent under flat priors of a, b and the logarithm of the noise
    evidence = -0.5 * np.log(square) - 0.5 * freedom * np.log(noise)
    # an increase is no power law that falls: those exponents say that it stays as it is
    weights = np.exp(evidence - evidence.max())
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(_EXPONENTS), size=_DRAWS, p=weights / weights.sum())
    away = 1.0 - mean[chosen, 0]
    scale = np.sqrt(noise[chosen] / (rng.chisquare(freedom, _DRAWS) / freedom))
    fall = slope[chosen] + scale * rng.standard_normal(_DRAWS) / np.sqrt(square[chosen])
    level = losses.mean() + scale * rng.standard_normal(_DRAWS) / np.sqrt(len(there))
    ends = level + np.maximum(fall, 0.0) * away + scale * rng.standard_normal(_DRAWS)
    # the offset a = level - fall * mean is no loss below 0
    floor = np.maximum(level - np.maximum(fall, 0.0) * mean[chosen, 0], 0.0)
    return np.sort(np.maximum(ends, floor))
