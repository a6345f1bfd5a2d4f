"""The shared step trains each trial as `finetune` would; members side by side do not know of each other."""

import jax
import numpy as np
import pytest

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import with_values
from jaxlean.hub.adapter import read_adapter
from jaxlean.run.finetune import finetune
from jaxlean.run.inputs import batches_of
from jaxlean.run.job import base, resolved
from jaxlean.search.inputs import constants, learning_rates
from jaxlean.search.program import Program
from jaxlean.xla.mesh import make_mesh

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_machine")]

SPACE = {
    "train.learning_rate": {"log": [1e-4, 0.1]}, "lora.r": [2, 4], "lora.lora_alpha": [4, 8], "seed": [0, 1],
    "train.weight_decay": [0.0, 0.1], "lora.lora_dropout": [0.0, 0.5], "train.adam_beta2": [0.9, 0.999],
    "train.lr_scheduler_type": ["cosine", "linear"],
}  # fmt: skip
TRIALS = [
    {"train.learning_rate": 0.01, "lora.r": 4, "lora.lora_dropout": 0.0},
    {"train.learning_rate": 0.03, "lora.r": 2, "seed": 1, "train.weight_decay": 0.1, "lora.lora_dropout": 0.5},
    {"train.learning_rate": 0.02, "lora.r": 4, "lora.lora_alpha": 4, "train.lr_scheduler_type": "linear"},
]


@pytest.fixture(scope="module")
def searched(tiny_values):
    from jaxlean.config import build

    return resolved(build(tiny_values | {"search": {"space": SPACE}}))


@pytest.fixture(scope="module")
def mesh(small_machine):
    return make_mesh()


@pytest.fixture(scope="module")
def model(searched, mesh):
    return base(searched, mesh)


def compiled(config, model, mesh, members):
    names = [*constants(config, list(SPACE)), "learning_rate"]
    made = Program(config, model, mesh, names=names, rank=4, length=64, members=members)
    assert made.compile()
    assert made.needed > 0
    return made


@pytest.fixture(scope="module")
def alone(searched, model, mesh):
    return compiled(searched, model, mesh, 1)


@pytest.fixture(scope="module")
def together(searched, model, mesh):
    return compiled(searched, model, mesh, 3)


def train(made, model, configs, steps=6):
    """What each config comes to, trained side by side."""
    batches = [batches_of(config, model, model.tokenizer, rows=made.rows) for config in configs]
    rates = [learning_rates(config, steps) for config in configs]
    for place, config in enumerate(configs):
        made.place(place, made.start(config))
    for step in range(steps):
        inputs = [
            constants(config, list(SPACE)) | {"learning_rate": own[step]}
            for config, own in zip(configs, rates, strict=True)
        ]
        measured = made.step([next(each) for each in batches], inputs)
        assert np.isfinite(np.asarray(measured.loss)).all()
    return [jax.device_get(tree.flatten(made.trained(place))) for place in range(len(configs))]


def assert_same(found, wanted, start):
    """To a ten-thousandth of the way they went: Adam's first steps are as long for a gradient of rounding errors."""
    for path, leaf in wanted.items():
        way = np.linalg.norm(leaf - np.asarray(start[path]))
        assert way > 0.01, path
        assert np.linalg.norm(found[path] - leaf) < 1e-4 * way, path


@pytest.mark.parametrize("number", [0, 1])
def test_a_trial_is_what_finetune_does(searched, model, alone, number, tmp_path):
    config = with_values(searched, TRIALS[number])
    found = train(alone, model, [config])[0]
    finetune(config.model_copy(update={"output_dir": str(tmp_path / "run")}))
    wanted = tree.flatten(read_adapter(tmp_path / "run" / "adapter", model.names, model.params))
    own = {}
    for path, leaf in found.items():
        own[path] = leaf[..., : config.lora.r] if path.endswith("lora_a") else leaf[..., : config.lora.r, :]
        assert np.count_nonzero(leaf) == np.count_nonzero(own[path]), "the rest of a higher rank stays zero"
    start = tree.flatten(alone.start(config))
    assert_same(own, {path: wanted[path] for path in own}, start)


def test_members_do_not_know_of_each_other(searched, model, alone, together):
    configs = [with_values(searched, trial) for trial in TRIALS]
    for config, found in zip(configs, train(together, model, configs), strict=True):
        start = tree.flatten(lora.padded(alone.start(config), 4))
        assert_same(found, train(alone, model, [config])[0], start)


def test_a_place_that_is_given_away_keeps_nothing(searched, model, together):
    configs = [with_values(searched, trial) for trial in TRIALS]
    before = train(together, model, configs)
    together.place(0, together.start(configs[1]))
    for place in (1, 2):
        for path, leaf in tree.flatten(together.trained(place)).items():
            np.testing.assert_array_equal(leaf, before[place][path], err_msg=path)
    fresh = tree.flatten(lora.padded(together.start(configs[1]), 4))
    for path, leaf in tree.flatten(together.trained(0)).items():
        np.testing.assert_array_equal(leaf, fresh[path], err_msg=path)


def test_what_does_not_fit_is_known_before_anything_is_allocated(searched, model, mesh):
    config = with_values(searched, {"train.memory_budget": 1000})
    names = [*constants(config, list(SPACE)), "learning_rate"]
    made = Program(config, model, mesh, names=names, rank=4, length=64)
    assert not made.compile()
    assert made.needed > made.budget
