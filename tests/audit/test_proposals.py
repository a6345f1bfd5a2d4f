"""Which cuts are proposed, and what they are called: as the receipt calls them."""

import pytest

from jaxlean.audit.proposals import cuts_in_force, proposals, unplanned
from jaxlean.config import build, with_values
from jaxlean.receipt.cuts import in_force

BASE = {"model": {"path": "org/base"}, "data": {"train": "a.jsonl"}}
BARE = {"lora": None, "train": {"loss_chunk_bytes": None}, "data": {"packing": False}}


@pytest.fixture(autouse=True)
def _no_model_is_read(monkeypatch) -> None:
    monkeypatch.setattr("jaxlean.run.job.is_base_quantized", lambda config: False)


def config(**sections):
    return build({**BASE, **{k: {**BASE.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}})


def named(found):
    return [(each.number, each.name) for each in found]


def test_a_run_without_any_cut_is_proposed_all_of_them() -> None:
    bare = config(**BARE, model={"attention": "plain"})
    assert named(proposals(bare, {"float32"})) == [
        (2, "LoRA"), (4, "gradient checkpointing"), (5, "mixed precision"), (5, "loss in chunks"),
        (5, "fused attention"), (None, "8-bit Adam"), (10, "right-sized parallelism"), (None, "packing"),
    ]  # fmt: skip
    assert {each.number for each in unplanned(bare)} == {3, 6, 7, 8, 9, 11, 12}


def test_what_is_in_force_is_not_proposed() -> None:
    lean = config(model={"quantization": "nf4", "dtype": "bfloat16"}, train={"remat": "auto"})
    assert named(proposals(lean, {"bfloat16"})) == [(10, "right-sized parallelism")]
    adapter = config()
    assert named(proposals(adapter, {"bfloat16"})) == [
        (4, "gradient checkpointing"), (6, "base in int8"), (6, "base in nf4"), (10, "right-sized parallelism"),
    ]  # fmt: skip
    assert "mixed precision" in {each.name for each in proposals(adapter, {"bfloat16", "float32"})}


@pytest.mark.parametrize(
    "bare", [config(**BARE, model={"attention": "plain"}), config(), config(train={"remat": "full"})]
)
def test_names_are_those_of_the_receipt_where_it_has_one(bare) -> None:
    for each in proposals(bare, {"float32"}):
        if each.ways == "spread":
            continue  # what it comes to is the planner's
        changed = with_values(bare, each.settings)
        ran = {"dtype": changed.model.dtype, "remat": "full", "attention": "block"}
        assert (each.number, each.name) in [(cut.number, cut.name) for cut in in_force(changed, ran)]
    for left in unplanned(bare):
        if left.number in (3, 7) and left.settings:
            changed = with_values(bare, left.settings)
            assert (left.number, left.name) in [(cut.number, cut.name) for cut in in_force(changed, {})]


@pytest.mark.parametrize(
    "bare",
    [
        config(**BARE),
        config(),
        config(model={"quantization": "int8", "dtype": "bfloat16"}),
        config(lora=None, train={"trainable": ["norm"]}),
        config(eval={"eval_steps": 5, "mode": "async"}, data={"eval": "b.jsonl"}),
        config(eval={"eval_steps": 5}, data={"eval": "b.jsonl"}),
        config(model={"new_tokens": ["a"]}, data={"curriculum": "length"}),
        config(distill={"teacher": "org/large"}),
        config(task="classify"),
    ],
)
def test_of_each_of_the_twelve_there_is_a_word(bare) -> None:
    ran = {"dtype": "float32", "remat": bare.train.remat}
    told = {number for number, _ in cuts_in_force(bare, ran)}
    told |= {each.number for each in (*proposals(bare, {"float32"}), *unplanned(bare))}
    assert told - {None} == set(range(1, 13))


def test_steps_that_are_counted_are_not_fewer_for_packing() -> None:
    found = unplanned(config(data={"packing": False}, train={"max_steps": 5}))
    (packing,) = [each for each in found if each.name == "packing"]
    assert "train.max_steps says" in packing.why
    assert "packing" not in {each.name for each in proposals(config(train={"max_steps": 5}), set())}


def test_one_sequence_on_one_device_is_not_spread() -> None:
    assert (10, "right-sized parallelism") not in named(proposals(config(), set(), spreads=False))
    (left,) = [each for each in unplanned(config(), spreads=False) if each.number == 10]
    assert "one sequence on one device" in left.why


def test_all_weights_that_are_to_train_stay_so() -> None:
    for sections in ({"train": {"trainable": ["norm"]}}, {"distill": {"teacher": "org/large"}}):
        fixed = config(lora=None, **sections)
        assert "LoRA" not in {each.name for each in proposals(fixed, set())}
        assert "LoRA" in {each.name for each in unplanned(fixed)}


def test_what_only_a_running_evaluation_shows_is_said_where_there_is_one() -> None:
    watched = config(eval={"eval_steps": 5}, data={"eval": "b.jsonl"}, compilation_cache=False)
    why = {each.name: each.why for each in unplanned(watched)}
    assert "measured while it runs" in why["asynchronous evaluation"]
    assert "early stopping" in why
    assert "compilation cache" in why
    assert "eval.eval_steps" in {each.name: each.why for each in unplanned(config())}["asynchronous evaluation"]
