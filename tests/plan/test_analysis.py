"""What is said of a candidate before it is compiled: a bound that holds, and an estimate that is near."""

import jax
import pytest

from jaxlean.plan.analysis import Analysis
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.compiled import compile_candidate
from jaxlean.plan.target import parse

LENGTH = 128


def analysis(config, num=8):
    return Analysis(config, parse(f"cpu:{num}"), jax.devices()[0], rows=8, length=LENGTH)


def candidate(mesh, microbatch=1, accumulation=1, form="none"):
    return Candidate(mesh, microbatch, accumulation, "float32", form)


@pytest.mark.parametrize(
    ("mesh", "microbatch", "sections"),
    [
        ((8, 1, 1, 1, 1), 1, {}),
        ((1, 2, 1, 1, 4), 4, {"lora": None}),
        ((2, 1, 1, 2, 2), 4, {"model": {"quantization": "int8"}}),
    ],
)
def test_the_compiler_agrees(job, mesh, microbatch, sections):
    config = job(**sections)
    form = config.model.quantization
    guesses = analysis(config).guesses(candidate(mesh, microbatch, form=form))
    for guess in (guesses[0], guesses[-1]):
        found = compile_candidate(config, parse("cpu:8"), jax.devices(), guess.candidate, length=LENGTH, cache=False)
        assert guess.bound <= found.memory
        assert 0.4 < guess.memory / found.memory < 2.5


def test_what_is_recomputed_costs_time_and_saves_memory(job):
    mesh = candidate((8, 1, 1, 1, 1))
    full, none = (analysis(job(train={"remat": policy})).guesses(mesh)[0] for policy in ("full", "none"))
    assert full.memory < none.memory
    assert full.bound < none.bound
    seconds = [guess.seconds for guess in analysis(job()).guesses(mesh)]
    assert len(seconds) > 2
    assert seconds == sorted(seconds)


def test_a_microbatch_that_is_halved_takes_less_memory(job):
    one = analysis(job(train={"remat": "none"}), num=1)
    whole, half = (one.guesses(candidate((1, 1, 1, 1, 1), rows, 8 // rows))[0] for rows in (8, 4))
    assert half.memory < whole.memory


def test_a_policy_that_the_config_sets_is_the_only_one(job):
    for wanted, policy in (("mlp", "mlp"), ("none", "none"), (["query", "key"], ("query", "key"))):
        found = analysis(job(train={"remat": wanted})).guesses(candidate((8, 1, 1, 1, 1)))
        assert [g.candidate.remat for g in found] == [policy]
    assert len(analysis(job(train={"remat": "auto"})).guesses(candidate((8, 1, 1, 1, 1)))) > 2


def test_a_mesh_that_divides_badly_has_none(job):
    assert analysis(job()).guesses(candidate((1, 1, 1, 1, 8))) != []
    odd = analysis(job(), num=3)
    assert odd.guesses(candidate((1, 3, 1, 1, 1))) == []


@pytest.mark.parametrize("task", ["classify", "embed"])
def test_a_task_is_planned_as_a_decoder_is(job, task, stand_in):
    columns = {"text_column": "text", "label_column": "label", "labels": ["a", "b"]}
    if task == "embed":
        columns = {"text_column": ["anchor", "positive"], "packing": False}
    config = job(data=columns, train={"per_device_train_batch_size": 2}).model_copy(update={"task": task})
    guesses = analysis(config, num=4).guesses(candidate((2, 2, 1, 1, 1), 2))
    found = compile_candidate(
        config, parse("cpu:4"), jax.devices()[:4], guesses[0].candidate, length=LENGTH, cache=False
    )
    assert guesses[0].bound <= found.memory
    assert 0.4 < guesses[0].memory / found.memory < 2.5
