"""Hyperband for trials that learn from all others, whatever their bracket.

Each trial belongs to a bracket: a tournament with its own first rung, since early losses may mislead (Li et al. 2018,
arXiv:1603.06560). Optuna shows a sampler the trials of one bracket alone. Of a few dozen trials that leaves TPE a dozen
to learn from, most of them drawn by lot; so here brackets decide only who goes on, and what is proposed next follows
from all trials, as in BOHB (Falkner et al. 2018, arXiv:1807.01774).
"""

from optuna.pruners import BasePruner, HyperbandPruner
from optuna.study import Study
from optuna.trial import FrozenTrial


class Hyperband(BasePruner):
    """Optuna's, which its samplers do not know as such.

    Args:
        first: steps at the first rung.
        last: steps of a whole trial.
        reduction_factor: one in so many goes on at each rung.
    """

    def __init__(self, first: int, last: int, reduction_factor: int):
        self._brackets = HyperbandPruner(first, last, reduction_factor)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial is given up at its last rung, among those of its bracket."""
        return self._brackets.prune(study, trial)
