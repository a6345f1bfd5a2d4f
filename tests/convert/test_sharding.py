"""DeepSpeed and FSDP as axes of a mesh."""

import json

import pytest

from jaxlean.config import MeshSection
from jaxlean.convert import sharding

SPLIT = {"mesh.data": 1, "mesh.fsdp": -1}


@pytest.mark.parametrize(
    ("value", "kind", "settings"),
    [
        ("examples/deepspeed/ds_z3_config.json", "carried", SPLIT),
        ("deepspeed_configs/zero3_bf16.json", "carried", SPLIT),
        ({"zero_optimization": {"stage": 3}}, "carried", SPLIT),
        ("deepspeed_configs/zero1.json", "missing", {}),
        ({"zero_optimization": {"stage": 2}}, "missing", {}),
        ({"zero_optimization": None}, "missing", {}),
        ("mine.json", "missing", {}),
    ],
)
def test_deepspeed(source, value, kind, settings) -> None:
    outcome = sharding.deepspeed(value, source())
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_the_file_of_deepspeed_is_read_where_it_is(source, write) -> None:
    settings = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    write(json.dumps(settings), "mine.json")
    outcome = sharding.deepspeed("mine.json", source())
    assert outcome.settings == SPLIT
    assert "to the host" in outcome.check
    write("not json", "mine.json")
    assert sharding.deepspeed("mine.json", source()).kind == "missing"


@pytest.mark.parametrize(
    ("value", "kind", "settings"),
    [
        (["full_shard", "auto_wrap"], "carried", SPLIT),
        ("full_shard auto_wrap", "carried", SPLIT),
        (True, "carried", SPLIT),
        ("shard_grad_op", "missing", {}),
        ("hybrid_shard", "missing", {}),
        ([], "idle", {}),
        ("", "idle", {}),
    ],
)
def test_fsdp(source, value, kind, settings) -> None:
    outcome = sharding.fsdp(value, source())
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_what_is_beside_fsdp(source) -> None:
    assert "to the host" in sharding.fsdp("full_shard offload", source()).check
    assert sharding.offloads(True, source()).kind == "missing"
    assert sharding.offloads(False, source()).kind == "idle"
    assert sharding.recomputes("true", source()).settings == {"train.remat": "full"}
    assert sharding.recomputes(False, source()).kind == "idle"


def test_axes(source) -> None:
    for name in MeshSection.model_fields:
        if name not in ("auto", "host_devices"):
            assert sharding.axis(name, "one")(2, source()).settings == {f"mesh.{name}": 2}
    assert sharding.axis("tensor", "not split")(1, source()).note == "not split"
