"""LoRA's settings under PEFT's names."""

import pytest

from jaxlean.convert import adapter


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        ("all", "all-linear"),
        ("all-linear", "all-linear"),
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        (["q_proj", "self_attn.v_proj", "q_proj"], ["q_proj", "v_proj"]),
        (".*_proj$", ".*_proj$"),
        (["q_proj", "embed_tokens"], ["q_proj"]),
    ],
)
def test_targets(source, value, ours) -> None:
    assert adapter.targets(value, source()).settings == {"lora.target_modules": ours}


def test_what_differs_of_targets_is_to_be_looked_at(source) -> None:
    assert "embed_tokens" in adapter.targets(["q_proj", "embed_tokens"], source()).check
    assert "searched" in adapter.targets(".*_proj$", source()).check
    assert adapter.targets(["embed_tokens"], source()).kind == "missing"
    assert adapter.targets([], source()).kind == "idle"


@pytest.mark.parametrize(
    ("value", "kind", "settings"),
    [
        (True, "idle", {}),
        ("pissa", "carried", {"lora.init_lora_weights": "pissa"}),
        ("pissa_niter_16", "carried", {"lora.init_lora_weights": "pissa"}),
        ("loftq", "missing", {}),
        (False, "missing", {}),
    ],
)
def test_starts(source, value, kind, settings) -> None:
    outcome = adapter.start(value, source())
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_tasks_kinds_and_biases(source) -> None:
    assert adapter.task("CAUSAL_LM", source()).kind == "idle"
    assert adapter.task("SEQ_CLS", source()).settings == {"task": "classify"}
    assert "data.label_column" in adapter.task("SEQ_CLS", source()).check
    assert adapter.task("QUESTION_ANS", source()).kind == "missing"
    assert adapter.kind("LORA", source()).kind == "carried"
    assert adapter.kind("IA3", source()).kind == "missing"
    assert adapter.bias("none", source()).kind == "idle"
    assert adapter.bias("all", source()).kind == "missing"
    assert adapter.pissa(True, source()).settings == {"lora.init_lora_weights": "pissa"}


def test_an_adapter_to_go_on_with(source) -> None:
    assert adapter.start_from("runs/a", source()).settings == {"lora.init_from": "runs/a"}
    assert adapter.start_from("a,b", source()).kind == "missing"
    merged = adapter.start_from("runs/a", source(create_new_adapter=True))
    assert (merged.kind, "jaxlean merge" in merged.note) == ("missing", True)
