"""Which cuts are in force, and the run without each."""

import pytest

from jaxlean.config import build
from jaxlean.receipt.cuts import in_force, program_without

BASE = {"model": {"path": "org/base"}, "data": {"train": "a.jsonl"}}
SUMMARY = {"dtype": "float32", "attention": "plain", "remat": "none"}


def cuts(summary=None, **sections):
    config = build({**BASE, **{k: {**BASE.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}})
    return config, in_force(config, SUMMARY | (summary or {}))


def without(found, name):
    config, all_ = found
    return program_without(config, [cut for cut in all_ if cut.name == name])


def test_a_plain_run_has_few_and_in_the_order_of_the_twelve():
    _, found = cuts(lora=None, train={"loss_chunk_bytes": None}, data={"packing": False})
    assert [(cut.number, cut.name, cut.kind) for cut in found] == [(1, "open weights", "unmeasured")]
    _, found = cuts()
    assert [cut.number for cut in found] == [1, 2, 5, None]
    assert [cut.name for cut in found] == ["open weights", "LoRA", "loss in chunks", "packing"]


def test_without_lora_the_base_trains_and_cannot_be_quantized():
    found = cuts(model={"quantization": "nf4"})
    changed = without(found, "LoRA")
    assert changed.lora is None
    assert changed.model.quantization == "none"
    assert without(found, "base in nf4").lora is not None
    assert without(found, "base in nf4").model.quantization == "none"
    (lora,) = [cut for cut in found[1] if cut.name == "LoRA"]
    assert lora.typed_without == ["lora=null", "model.quantization=none"]
    packing = next(cut for cut in found[1] if cut.name == "packing")
    assert packing.typed_without == ["data.packing=false"]


@pytest.mark.parametrize(
    ("summary", "train", "there"),
    [
        ({"remat": "full"}, {"remat": "full"}, True),
        ({"remat": ["mlp_out"]}, {"remat": "auto"}, True),
        ({"remat": "none"}, {"remat": "auto"}, False),
        ({"remat": None}, {"remat": "attention"}, True),
    ],
)
def test_checkpointing_is_what_the_run_did_not_what_it_asked_for(summary, train, there):
    found = cuts(summary, train=train)
    assert ("gradient checkpointing" in [cut.name for cut in found[1]]) == there
    if there:
        assert without(found, "gradient checkpointing").train.remat == "none"


def test_what_the_run_chose_by_itself_counts():
    found = cuts({"dtype": "bfloat16", "attention": "cudnn"})
    assert without(found, "mixed precision").model.dtype == "float32"
    assert without(found, "fused attention").model.attention == "plain"


def test_the_others():
    found = cuts(
        train={"optim": "adamw_8bit", "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        mesh={"fsdp": 4, "tensor": 2}, model={"matmul": "int8", "quantization": "int8"},
    )  # fmt: skip
    assert without(found, "8-bit Adam").train.optim == "adamw"
    whole = without(found, "gradient accumulation").train
    assert (whole.gradient_accumulation_steps, whole.per_device_train_batch_size) == (1, 8)
    alone = without(found, "model split over devices").mesh
    assert (alone.fsdp, alone.tensor, alone.data) == (1, 1, -1)
    assert without(found, "products in int8").model.matmul == "default"
    config, all_ = found
    none = program_without(config, [cut for cut in all_ if cut.kind == "program"])
    assert in_force(none, SUMMARY | {"remat": "none"}) == [cut for cut in all_ if cut.kind != "program"]


def test_what_is_paid_and_what_is_not_run():
    _, found = cuts(
        {"compiled_from_cache": True, "stopped_early": {"rule": "patience"}},
        cost={"pricing": "spot"}, eval={"mode": "async", "eval_steps": 10}, data={"eval": "b.jsonl"},
    )  # fmt: skip
    kinds = {cut.name: cut.kind for cut in found}
    assert kinds["asynchronous evaluation"] == kinds["compilation cache"] == "seconds"
    assert kinds["early stopping"] == "steps"
    assert kinds["spot price"] == "price"


def test_a_given_number_of_steps_is_not_made_fewer_by_packing():
    _, found = cuts(train={"max_steps": 10})
    assert "packing" not in [cut.name for cut in found]
