"""LLaMA-Factory's own keys, where a table's row needs more than its value."""

import pytest

from jaxlean.convert import llama_factory
from jaxlean.convert.row import UNSET


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sft", "idle", {}),
        ("pt", "carried", {"data.train_on": "all"}),
        ("dpo", "refused", {}),
        ("rm", "refused", {}),
    ],
)
def test_stages(source, name, kind, settings) -> None:
    outcome = llama_factory.stage(name, source())
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_methods_and_their_ranks(source) -> None:
    assert llama_factory.method("full", source()).settings == {"lora": None}
    assert llama_factory.method("lora", source()).kind == "carried"
    assert "rotations" in llama_factory.method("oft", source()).note
    assert llama_factory.rank(source()) == 8
    assert llama_factory.alpha(source(lora_rank=12)) == 24
    assert llama_factory.rank(source(finetuning_type="full")) is UNSET
    assert llama_factory.alpha(source(finetuning_type="full")) is UNSET


def test_whether_it_trains(source) -> None:
    assert llama_factory.trains(True, source()).kind == "idle"
    assert llama_factory.trains(False, source()).kind == "refused"
    checks = [outcome.check for outcome in llama_factory.others(source())]
    assert any("do_train is not set" in check for check in checks)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama3", "missing"), ("alpaca", "carried"), ("qwen2_vl", "refused"), ("qwen2_audio", "refused")],
)
def test_templates(source, name, kind) -> None:
    assert llama_factory.template(name, source()).kind == kind
    if kind == "missing":
        assert llama_factory.template(name, source(stage="pt")).kind == "idle"


def test_packing(source) -> None:
    plain = llama_factory.packs(True, source(packing=True))
    assert plain.settings == {"data.packing": True}
    assert "never see each other" in plain.note
    assert llama_factory.packs(True, source(neat_packing=True)).note == ""
    assert llama_factory.packs(False, source(packing=False, neat_packing=True)).settings == {"data.packing": True}
    assert llama_factory.packs_by_default(source(stage="pt")) is True
    assert llama_factory.packs_by_default(source()) is False
    assert llama_factory.packs_by_default(source(neat_packing=True)) is UNSET


def test_switches(source) -> None:
    assert llama_factory.recomputes(True, source()).settings == {"train.remat": "none"}
    assert llama_factory.learns_all(True, source()).settings == {"data.train_on": "all"}
    assert llama_factory.in_order(True, source()).settings == {"data.shuffle": False}
    assert llama_factory.muon(True, source()).settings == {"train.optim": "muon"}
    assert llama_factory.muon(False, source()).kind == "idle"
    made = llama_factory.tokens(None, source(add_tokens="<a>,<b>", add_special_tokens="<b>"))
    assert made.settings == {"model.new_tokens": ["<a>", "<b>"]}
