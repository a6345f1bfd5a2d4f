"""Curriculum learning: a run that begins with the easy rows and ends with all of them.

Three choices make one (Bengio et al., ICML 2009; the first two are those of Hacohen and Weinshall, arXiv 1904.03626).
A *difficulty* puts the rows in order. A *pacing* function says which share of the data, the easiest, is available at
each moment. And a *floor*, a share of what is drawn, comes from all rows from the first step on, so that a model which
sees mostly easy rows does not forget that there are others. Wu et al. (arXiv 2012.03107, "When do curricula work?")
compared many: a gain over random order is rare, and rows in random order under the same pacing often gain as much.
Hence `order: random`, which does that, and `hard_first`, the anti-curriculum.

What an epoch is. A run takes as much as it would without a curriculum: `num_train_epochs` times the data. It is cut
into phases; in each, rows are drawn in turn: none twice before all that are available were drawn once, and those that
were never drawn before the others. If the run takes the data once or more, every row is seen: what is available is
never so little that the rest of the run has no room for what is not. So in one epoch each row is seen exactly once,
whatever the pacing.

What "share" means. Where rows are packed, shares are shares of tokens, since steps are made of tokens; otherwise of
rows. With weights each source has a curriculum of its own, so that the mix stays what it is from the first step on.
No sequence holds rows of two phases; rows of like length fill sequences worse than a mix of all (`jaxlean inspect`
tells how many steps that makes), the less so the longer sequences are.

Everything is a pure function of the seed and the data, so that a resumed run continues at the exact row.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from jaxlean.config import CurriculumSection
from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.tokenize import Ragged
from jaxlean.errors import ConfigError, DataError

# (the rows that train) -> float [rows], a model's mean loss on each
Losses = Callable[[Ragged], np.ndarray]


def available(pacing: str, t: float, *, start: float, until: float) -> float:
    """The share of the data that a pacing function makes available.

    Args:
        pacing: linear and root (Wu et al., table 1), step (one share until all comes at once), competence (the square
            root of Platanios et al., arXiv 1903.09848, eq. 8: the more there is, the slower more comes).
        t: share of the run that is over, 0..1.
        start: share at t = 0.
        until: t from which everything is available.

    >>> [round(available("competence", t, start=0.2, until=0.5), 3) for t in (0, 0.125, 0.25, 0.5, 1)]
    [0.2, 0.529, 0.721, 1.0, 1.0]
    """
    if t >= until:
        return 1.0
    x = t / until
    if pacing == "linear":
        return start + (1 - start) * x
    if pacing == "root":
        return start + (1 - start) * x**0.5
    if pacing == "competence":
        return float(((1 - start**2) * x + start**2) ** 0.5)
    return start


def difficulty(
    section: CurriculumSection, examples: Ragged, group: int = 1, *, column: np.ndarray, losses: Losses | None
) -> np.ndarray:
    """float [rows]: how hard each row is, larger is harder.

    Args:
        examples: of the rows, `group` each.
        column: float [rows], what the data themselves say.
        losses: measures those of the model that is to learn the rows.

    Raises:
        ConfigError: they are wanted, and there is nothing to measure them with.
    """
    if section.difficulty == "column":
        return column
    if section.difficulty == "length":
        return length_of(examples, group)
    if section.difficulty == "rarity":
        return rarity_of(examples, group)
    if losses is None:
        raise ConfigError(
            "rows are to be ordered by the base's loss, and there is no base here", where="data.curriculum.difficulty",
            fix="jaxlean finetune measures it before it trains",
        )  # fmt: skip
    return losses(examples)


def length_of(examples: Ragged, group: int = 1) -> np.ndarray:
    """float64 [rows]: the tokens of each row, which is `group` examples."""
    return examples.lengths.reshape(-1, group).sum(axis=1).astype(np.float64)


def rarity_of(examples: Ragged, group: int = 1) -> np.ndarray:
    """float64 [rows]: the mean of -log p over a row's tokens, p being a token's share of all tokens.

    Platanios et al. (section 2.2) take the sum, whose order is nearly that of the length; the mean tells another thing.
    """
    ids = examples.input_ids
    counts = np.bincount(ids)
    surprise = -np.log(counts[ids] / len(ids))
    sums = np.add.reduceat(surprise, examples.offsets[:-1]) if len(examples) else np.zeros(0)
    return sums.reshape(-1, group).sum(axis=1) / length_of(examples, group)


class Curriculum:
    """Draws the phases of a run: to `data.epochs.Steps` what `Mix` is, with a phase in the place of an epoch.

    Args:
        section: the settings.
        scores: float [rows], larger is harder; equals are in random order.
        costs: int [rows], what each takes of the run: its tokens, or 1.
        sizes: rows of each part that has a curriculum of its own, one after the other.
        quota: rows that each part gives to an epoch.
        epochs: how often the run takes the data.
        most: phases that the run has at most.
        seed: of the order.

    Raises:
        DataError: a score is not a number.
    """

    shuffle = True  # what a phase draws is in any order
    alike = False  # two phases do not hold the same rows

    def __init__(
        self,
        section: CurriculumSection,
        scores: np.ndarray,
        costs: np.ndarray,
        *,
        sizes: Sequence[int],
        quota: Sequence[int],
        epochs: float,
        most: int,
        seed: int,
    ):
        if not np.isfinite(scores).all():
            i = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise DataError(
                "the difficulty of a row is not a number", where=f"data.curriculum.difficulty: {section.difficulty}",
                got=f"{scores[i]} for the row at place {i + 1} of those that train",
                wanted="finite numbers", fix="another data.curriculum.difficulty, or leave such rows out",
            )  # fmt: skip
        self.section, self.seed, self.scores = section, seed, scores
        self.num_phases = max(1, min(section.phases, most))
        rng = np.random.default_rng([seed, 0, 0, 2])
        keys = rng.random(len(scores)) if section.order == "random" else scores
        sign = -1.0 if section.order == "hard_first" else 1.0
        self.parts: list[_Part] = []
        for first, size, taken in zip(np.cumsum([0, *sizes]), sizes, quota, strict=False):
            rows = np.arange(first, first + size)
            rows = rows[np.lexsort((rng.random(size), sign * keys[rows]))]
            total = max(1, round(epochs * taken * float(costs[rows].mean()))) if size and taken else 0
            self.parts.append(_Part(rows, costs[rows].astype(np.int64), total))
        self._phases: list[np.ndarray] = []

    def epoch(self, e: int, fraction: float = 1.0) -> np.ndarray:
        """int32 [rows of phase e]: the rows in order. Beyond the last phase all are available (`max_steps`)."""
        assert fraction == 1.0, "a run has whole phases"
        while len(self._phases) <= e:
            p = len(self._phases)
            rng = np.random.default_rng([self.seed, p, 0, 3])
            drawn = [part.draw(*self._shares(p), floor=self.section.floor, rng=rng) for part in self.parts]
            self._phases.append(rng.permutation(np.concatenate(drawn)).astype(np.int32))
        return self._phases[e]

    def available(self, p: int) -> list[np.ndarray]:
        """The rows of each part that phase p draws from, easiest first."""
        return [part.rows[: part.num_available(*self._shares(p))] for part in self.parts]

    def _shares(self, p: int) -> tuple[float, float]:
        """(the share of the data available in phase p, the share of the run that is over at its end)."""
        how = self.section
        return available(how.pacing, p / self.num_phases, start=how.start, until=how.until), (p + 1) / self.num_phases

    @classmethod
    def of_run(cls, section: CurriculumSection, scores: np.ndarray, steps: Steps, epochs: float) -> "Curriculum":
        """The curriculum of a run that would otherwise take these steps, in which the data come so many times."""
        mix = steps.mix
        assert isinstance(mix, Mix), "in random order"
        every = [sum(mix.sizes)]
        return cls(
            section,
            scores,
            steps.examples.lengths if steps.packing else np.ones(len(scores), np.int64),
            sizes=every if mix.weights is None else mix.sizes,
            quota=every if mix.weights is None else mix.quota,
            epochs=epochs,
            most=len(steps),
            seed=mix.seed,
        )

    @property
    def fingerprint(self) -> str:
        """Tells this order from others."""
        content = 0
        for part in self.parts:
            content = zlib.crc32(part.rows.tobytes(), content)
        return f"curriculum {self.section.model_dump_json()} ({content:08x}) in {self.num_phases} phases"

    def __str__(self) -> str:
        how = self.section
        by = f"column {how.column!r}" if how.column else how.difficulty
        growth = "at once" if how.pacing == "step" else f"by {how.pacing}"
        return (
            f"curriculum: {by}, {how.order.replace('_', ' ')}; {how.start:.0%} available at first, all after "
            f"{how.until:.0%} of the run, {growth}; {how.floor:.0%} drawn from all throughout; {self.num_phases} phases"
        )


class _Part:
    """Rows in order of difficulty, and which of them were drawn.

    Args:
        rows: int [n], easiest first.
        costs: int64 [n] of these.
        total: cost that the whole run takes.
    """

    def __init__(self, rows: np.ndarray, costs: np.ndarray, total: int):
        self.rows, self.costs, self.total = rows, costs, total
        self.upto = np.cumsum(costs)
        self.drawn = 0  # cost so far
        self.from_all = 0  # of that what was drawn for the floor
        self.round = 0
        self.last = np.full(len(rows), -1)  # the round in which each was drawn last

    def num_available(self, share: float, over: float) -> int:
        """How many rows are available, of which the cost is at least a share of that of all.

        At least so many that the rest of the run, after `over` of it, has room for those that are not yet available.
        """
        whole = int(self.upto[-1]) if len(self.upto) else 0
        left = self.total - round(over * self.total)
        # an example that begins before the end of the phase ends behind it, hence the largest on top
        needed = min(whole, self.total) - left + int(self.costs.max(initial=0))
        return min(int(np.searchsorted(self.upto, max(share * whole, needed, 1))) + 1, len(self.rows))

    def draw(self, share: float, over: float, *, floor: float, rng: np.random.Generator) -> np.ndarray:
        """The rows of the next phase, which ends when `over` of the run is over.

        The floor is a share of the run so far: what is less than a row in one phase is made up for in a later one.
        """
        end = round(over * self.total)
        parts, before = [np.zeros(0, np.int64)], self.drawn
        every, some = len(self.rows), self.num_available(share, over)
        owed = min(end, before + round(floor * end) - self.from_all)
        while every and self.drawn < owed:
            parts.append(self._take(every, owed, rng))
        self.from_all += self.drawn - before
        while some and self.drawn < end:
            parts.append(self._take(some, end, rng))
        return np.concatenate(parts)

    def _take(self, num: int, upto: int, rng: np.random.Generator) -> np.ndarray:
        """Of the first `num` rows those whose turn it is, until `upto` is drawn, or none is left in this round."""
        waiting = np.flatnonzero(self.last[:num] < self.round)
        if not len(waiting):
            self.round += 1
            return waiting
        # drawn longest ago (or never) first, at random among equals
        waiting = waiting[np.lexsort((rng.random(len(waiting)), self.last[waiting]))]
        costs = np.cumsum(self.costs[waiting])
        chosen = waiting[: int(np.searchsorted(costs, upto - self.drawn)) + 1]
        self.drawn += int(self.costs[chosen].sum())
        self.last[chosen] = self.round
        return self.rows[chosen]
