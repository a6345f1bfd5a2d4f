"""Axolotl's own keys, where a table's row needs more than its value."""

import pytest

from jaxlean.convert import axolotl
from jaxlean.convert.row import UNSET


@pytest.mark.parametrize(
    ("value", "kind", "settings"),
    [
        (None, "carried", {"lora": None}),
        ("", "carried", {"lora": None}),
        ("lora", "carried", {}),
        ("qlora", "carried", {"model.quantization": "nf4"}),
        ("llama-adapter", "missing", {}),
    ],
)
def test_adapters(source, value, kind, settings) -> None:
    outcome = axolotl.adapts(value, source())
    assert (outcome.kind, dict(outcome.settings)) == (kind, settings)


def test_all_linear_modules_go_before_named_ones(source) -> None:
    both = source(lora_target_linear=True, lora_target_modules=["q_proj"])
    assert axolotl.linear(True, both).settings == {"lora.target_modules": "all-linear"}
    assert "see which" in axolotl.linear(True, both).check
    assert axolotl.modules(["q_proj"], both).kind == "idle"
    assert axolotl.modules(["q_proj"], source()).settings == {"lora.target_modules": ["q_proj"]}
    assert axolotl.no_targets(both) is UNSET
    assert axolotl.no_targets(source()) == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("keys", "steps"),
    [({}, 0.03), ({"max_steps": 1000}, 30), ({"max_steps": 50}, 2), ({"max_steps": 9000}, 100),
     ({"warmup_ratio": 0.1}, UNSET)],
)  # fmt: skip
def test_the_warm_up_where_none_is_said(source, keys, steps) -> None:
    assert axolotl.warmup(source(**keys)) == steps


def test_a_batch_of_all_microbatches_is_accumulation(source) -> None:
    assert axolotl.accumulates(source(batch_size=8, micro_batch_size=2)) == 4
    assert axolotl.accumulates(source(batch_size=1, micro_batch_size=2)) == 1
    assert axolotl.accumulates(source()) == 1


def test_long_rows(source) -> None:
    assert axolotl.excess("raise", source()).settings == {"data.on_long": "error"}
    assert axolotl.excess("drop", source()).settings == {"data.on_long": "drop"}
    texts = axolotl.excess("drop", source(datasets=[{"path": "a", "type": "completion"}]))
    assert texts.settings == {"data.on_long": "truncate"}
    assert "several rows there" in texts.check


def test_templates(source) -> None:
    assert axolotl.template("tokenizer_default", source()).kind == "idle"
    assert axolotl.template("llama3", source()).kind == "missing"
    assert axolotl.template("jinja", source()).kind == "carried"
    assert axolotl.jinja("chat.jinja", source()).settings == {"model.chat_template": "chat.jinja"}
    assert axolotl.jinja("{% for m in messages %}{% endfor %}", source()).kind == "missing"


def test_schedules_rows_and_orders(source) -> None:
    assert axolotl.floor(0.1, source()).settings == {"train.min_lr_ratio": 0.1}
    assert axolotl.floor(0.1, source(lr_scheduler="linear")).kind == "idle"
    assert axolotl.in_order(True, source()).settings == {"data.shuffle": False}
    assert axolotl.inputs(True, source()).settings == {"data.train_on": "all"}
    assert axolotl.rows_at_a_time(source(micro_batch_size=3)) == 3


def test_trackers_plugins_and_tokens(source) -> None:
    assert axolotl.wandb("p", source(wandb_project="p")).settings == {
        "report.wandb": True, "report.wandb_project": "p",
    }  # fmt: skip
    assert axolotl.wandb("p", source(wandb_project="p", use_wandb=False)).kind == "idle"
    assert axolotl.plugins(["axolotl.integrations.liger.LigerPlugin"], source()).kind == "idle"
    assert "mine.Plugin" in axolotl.plugins(["mine.Plugin"], source()).note
    made = axolotl.tokens(None, source(tokens=["<a>", "<b>"], special_tokens__additional_special_tokens=["<a>"]))
    assert made.settings == {"model.new_tokens": ["<a>", "<b>"]}


def test_weights_and_shards(source) -> None:
    assert axolotl.weights("int4", source()).settings == {"model.quantization": "nf4"}
    assert axolotl.weights("fp8", source()).kind == "missing"
    assert axolotl.fsdp2(True, source()).settings == {"mesh.data": 1, "mesh.fsdp": -1}
    assert axolotl.fsdp2(True, source(fsdp=["full_shard"])).kind == "idle"


def test_what_follows_from_several_keys(source) -> None:
    checks = " ".join(outcome.check for outcome in axolotl.others(source(adapter="lora")))
    assert "learning_rate is not set" in checks
    assert "q_proj and v_proj" in checks
    assert "no more than 100" in checks
    full = list(axolotl.others(source(learning_rate=1e-4, max_steps=5, early_stopping_patience=3)))
    assert [dict(outcome.settings) for outcome in full] == [{"eval.load_best": True}]
