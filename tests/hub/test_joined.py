"""Settings of several adapters as those of one: the modules of all, and what cannot be joined is refused by name."""

import numpy as np
import pytest

from jaxlean import tree
from jaxlean.errors import ModelError
from jaxlean.hub.joined import apart, check_alike, joined
from jaxlean.hub.peft_tree import PeftTree

Q, V, UP = "layers.0.attn.q_proj", "layers.0.attn.v_proj", "layers.0.mlp.up_proj"


def made(*modules, kernels=None, parameters=(), over=None, **settings):
    leaves = {f"{m}.{leaf}": np.ones((2, 2), np.float32) for m in modules for leaf in ("lora_a", "lora_b")}
    stated = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 2} | settings
    return PeftTree(stated, tree.unflatten(leaves), kernels or {}, frozenset(parameters), over or {})


NAMES = ["north", "south"]


def refusal(*adapters):
    with pytest.raises(ModelError) as caught:
        check_alike(adapters, NAMES)
    return str(caught.value)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (made(Q, peft_type="TRAINABLE_TOKENS"), ("different kinds", "peft_type TRAINABLE_TOKENS", "LORA, as in north")),
        (made(Q, task_type="SEQ_CLS"), ("different tasks", "task_type SEQ_CLS")),
        (made(Q, trainable_token_indices={"embed_tokens": [7]}), ("rows of different tokens", "{'embed_tokens': [7]}")),
        (made(Q, layer_replication=[[0, 2], [1, 3]]), ("repeated in different ways",)),
        (made(Q, over={"matmul": "sparse"}), ("in different ways", "matmul sparse", "as it is, as in north")),
        (made(Q, kernels={Q: ((3, 3), (1, 1))}), (f"different bases: {Q}", "a convolution of 3 x 3", "a linear layer")),
        (made(f"{Q}.weight", parameters=[f"{Q}.weight"]), (f"another as a parameter: {Q}", "where:  north")),
    ],
)
def test_what_is_not_alike_is_named(other, words):
    text = refusal(made(Q), other)
    for word in words:
        assert word in text
    if "as a parameter" not in text:
        assert "where:  south" in text


def test_what_is_not_said_is_no_difference():
    check_alike([made(Q, task_type=None), made(Q), made(Q, layer_replication=None, trainable_token_indices={})], "abc")


def test_who_shares_no_module_is_told():
    assert list(apart([made(Q, V), made(V), made(UP)], "abc")) == ["c"]
    assert list(apart([made(Q), made(Q)], NAMES)) == []
    assert list(apart([made(Q)], NAMES[:1])) == []


def test_the_same_choice_stays_as_it_was():
    regex = {"target_modules": ".*(q|v)_proj", "layers_to_transform": [0], "exclude_modules": "v_proj"}
    found = joined([made(Q, **regex), made(Q, **regex)], base="base")
    assert found == found | regex
    lists = joined(
        [made(Q, V, target_modules=["v_proj", "q_proj"]), made(Q, V, target_modules=["q_proj", "v_proj"])], base="b"
    )
    assert lists["target_modules"] == ["v_proj", "q_proj"]


def test_lists_are_joined():
    found = joined([made(Q), made(V, target_modules=["v_proj"]), made(Q)], base="base")
    assert found["target_modules"] == ["q_proj", "v_proj"]
    layers = {"layers_to_transform": [0]}
    found = joined([made(Q, **layers), made(V, target_modules=["v_proj"], **layers)], base="base")
    assert (found["target_modules"], found["layers_to_transform"]) == (["q_proj", "v_proj"], [0])


@pytest.mark.parametrize(
    "other", [{"target_modules": ".*up_proj"}, {"layers_to_transform": [0]}, {"exclude_modules": ["x"]}]
)
def test_other_choices_become_names(other):
    one = made(Q, "experts.down_proj", parameters=["experts.down_proj"], target_parameters=["down_proj"])
    found = joined([one, made(UP, **other)], base="base")
    assert found["target_modules"] == [Q, UP]
    assert found["target_parameters"] == ["down_proj"]
    assert [found[key] for key in ("layers_to_transform", "layers_pattern", "exclude_modules")] == [None] * 3


def test_the_rest_is_that_of_all_of_them():
    one = made(
        Q, task_type=None, modules_to_save=["classifier"], use_dora=True, init_lora_weights="eva", inference_mode=False
    )
    found = joined([one, made(Q, modules_to_save=["score"], base_model_name_or_path="theirs")], base="ours")
    assert found == found | {
        "base_model_name_or_path": "ours",
        "task_type": "CAUSAL_LM",
        "modules_to_save": ["classifier", "score"],
        "use_dora": True,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_parameters": None,
    }
    assert one.settings["task_type"] is None, "who is joined stays as it was"


def test_rows_of_tokens_alone_have_no_lora():
    rows = made(peft_type="TRAINABLE_TOKENS", token_indices=[1, 2], target_modules=["embed_tokens"])
    found = joined([rows, rows], base="ours")
    assert found["token_indices"] == [1, 2]
    assert "use_dora" not in found
