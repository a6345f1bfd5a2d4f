"""The ways to run a job: each keeps the job what it is, and all that divide are there."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.config import build
from jaxlean.config.read import told
from jaxlean.models.decoder import DecoderConfig
from jaxlean.plan.candidate import Candidate, as_written, enumerate_candidates, is_set, rows_per_step
from jaxlean.xla.mesh import AXES, ROWS

SHAPE = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
)  # fmt: skip


def job(**changes):
    return build({"data": {"train": "unread"}, "model": {"path": "unread"}, **changes})


def found(config, num_devices, rows=8, length=64, bases=(("float32", "none"),)):
    return list(enumerate_candidates(config, SHAPE, num_devices, rows=rows, length=length, bases=bases))


@given(num_devices=st.sampled_from([1, 2, 4, 6, 8, 16]), rows=st.integers(1, 24), length=st.sampled_from([12, 64, 100]))
def test_every_candidate_is_the_same_job_on_all_devices(num_devices, rows, length):
    candidates = found(job(), num_devices, rows, length)
    assert len(set(candidates)) == len(candidates)
    for candidate in candidates:
        axes = candidate.axes
        assert math.prod(candidate.mesh) == num_devices
        shards = math.prod(axes[axis] for axis in ROWS)
        assert candidate.microbatch * candidate.accumulation * shards == rows
        assert length % axes["context"] == SHAPE.num_kv_heads % axes["tensor"] == SHAPE.hidden_size % axes["fsdp"] == 0


def test_all_that_divide_are_there():
    candidates = found(job(), 4, rows=4)
    meshes = {c.mesh_name for c in candidates}
    assert meshes == {
        "data=4", "fsdp=4", "context=4", "data=2 fsdp=2", "data=2 context=2", "data=2 tensor=2", "fsdp=2 context=2",
        "fsdp=2 tensor=2", "context=2 tensor=2",
    }  # fmt: skip
    assert {(c.microbatch, c.accumulation) for c in candidates if c.mesh_name == "context=4"} == {
        (4, 1),
        (2, 2),
        (1, 4),
    }
    assert [c.mesh_name for c in found(job(), 1)] == ["one device"] * 4
    assert found(job(), 3, rows=4, length=64) == []


def test_what_the_config_sets_stays():
    assert {c.axes["fsdp"] for c in found(job(mesh={"fsdp": 2}), 8)} == {2}
    assert {c.mesh_name for c in found(job(mesh={"data": 4, "tensor": 2}), 8)} == {"data=4 tensor=2"}
    assert found(job(mesh={"fsdp": 3}), 8) == []
    assert {c.axes["fsdp"] for c in found(job(mesh={"fsdp": 1}), 8)} == {1}, "one device is said too"
    assert {c.axes["fsdp"] for c in found(job(mesh={"fsdp": -1}), 8)} == {1, 2, 4, 8}, "what is left, not a number"


def test_forms_of_the_base_and_dtypes_are_tried_side_by_side():
    bases = (("float32", "none"), ("bfloat16", "nf4"))
    assert {(c.dtype, c.quantization) for c in found(job(), 1, bases=bases)} == {*bases}


def test_a_setting_is_one_that_the_config_says_itself():
    config = job(train={"remat": "none"})
    assert is_set(config.train, "remat")
    assert not is_set(config.train, "optim")
    assert not is_set(job(model={"path": "unread", "dtype": "auto"}).model, "dtype"), "auto is no choice"
    again = build(json.loads(json.dumps(told(config))))
    assert again == config
    assert is_set(again.train, "remat"), "also when it went to another process"
    assert not is_set(again.train, "optim")


def test_the_config_as_written_is_a_candidate_where_it_is_the_same_job():
    config = job(train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "remat": ["query"]})
    written = as_written(config, 1, rows=8, dtype="float32")
    assert written == Candidate((1, 1, 1, 1, 1), 4, 2, "float32", "none", ("query",))
    assert as_written(config, 2, rows=8, dtype="float32") is None, "twice the sequences: another job"
    assert as_written(job(mesh={"fsdp": 4}), 2, rows=8, dtype="float32") is None
    spread = job(mesh={"fsdp": 4}, train={"per_device_train_batch_size": 2})
    assert as_written(spread, 8, rows=16, dtype="float32").axes["data"] == 2
    assert as_written(job(train={"remat": "auto"}), 1, rows=8, dtype="float32") is None


@pytest.mark.parametrize(
    ("train", "mesh", "devices", "rows"),
    [
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}, {}, 1, 12),
        ({"per_device_train_batch_size": 4}, {}, 8, 32),
        ({"per_device_train_batch_size": 4}, {"data": 2, "fsdp": 3, "tensor": 5}, 1, 24),
        ({"per_device_train_batch_size": 4}, {"context": 4}, 8, 8),
        ({"per_device_train_batch_size": 4}, {"context": 4}, 1, 4),
    ],
)
def test_sequences_of_a_step(train, mesh, devices, rows):
    assert rows_per_step(job(train=train, mesh=mesh), devices) == rows


def test_it_goes_into_a_config_and_through_json():
    candidate = Candidate((2, 2, 1, 1, 2), 3, 4, "bfloat16", "int8", ("query", "gate"))
    config = candidate.apply(job())
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (2, 2, 2)
    assert (config.train.per_device_train_batch_size, config.train.gradient_accumulation_steps) == (3, 4)
    assert (config.model.dtype, config.model.quantization, config.train.remat) == (
        "bfloat16",
        "int8",
        ["query", "gate"],
    )
    assert Candidate.from_dict(json.loads(json.dumps(candidate.as_dict()))) == candidate
    assert candidate.axes.keys() == set(AXES)
    assert job().train.remat == "none", "the config it was applied to is another"


def test_pairs_stay_on_a_device_and_microbatches_as_they_are():
    """The pairs of a microbatch are each other's negatives: how many they are is part of the job."""
    config = job(task="embed", train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    candidates = found(config, 4, rows=16)
    assert candidates
    assert {candidate.accumulation for candidate in candidates} == {2}
    assert all(candidate.microbatch % 2 == 0 for candidate in candidates)
    assert not any(math.prod(candidate.axes[axis] for axis in ROWS) == 8 for candidate in found(config, 8, rows=16))
