"""Brackets decide who goes on; what is proposed follows from all trials."""

import optuna
import pytest
from optuna.pruners import HyperbandPruner

from jaxlean.search.hyperband import Hyperband


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


class Seeing(optuna.samplers.RandomSampler):
    """Notes how many trials it is shown."""

    def __init__(self):
        super().__init__(0)
        self.seen = []

    def sample_relative(self, study, trial, search_space):
        self.seen.append(len(study.get_trials(deepcopy=False)))
        return {}


def play(pruner):
    """(states, steps) of trials with the same values under a rule, and what the sampler has seen."""
    sampler = Seeing()
    study = optuna.create_study(study_name="same", sampler=sampler, pruner=pruner)
    found = []
    for _ in range(40):
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        for step in (9, 27):
            trial.report(x + 1 / step, step)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                found.append(step)
                break
        else:
            study.tell(trial, x)
            found.append(81)
    return found, sampler.seen


def test_who_goes_on_is_optunas_and_everything_is_seen():
    ours, seen = play(Hyperband(9, 81, 3))
    theirs, seen_apart = play(HyperbandPruner(9, 81, 3))
    assert ours == theirs
    assert {9, 27, 81} == set(ours), "several brackets: some end at each rung"
    assert seen == list(range(1, 41)), "all before it, and itself"
    assert max(seen_apart) < 30
