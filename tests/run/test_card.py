"""The card of an exported model: what it says, and what it does not know."""

import json

from jaxlean.config import DistillSection
from jaxlean.run.card import card, cuts
from jaxlean.run.units import show_percent


def test_the_card_of_a_run_that_measured_nothing(tiny_run):
    config = tiny_run("lora=null", "data.eval=null", "train.remat=full", "train.gradient_accumulation_steps=4")
    text = card(config, {}, name="x", form="hf", num_bytes=2048, bytes_before=None)
    for words in ("# x", "Its quality was not measured", "2.0 KiB", "| trained | - steps", "cost | unknown"):
        assert words in text
    found = cuts(config, {}, None)
    assert found == [
        "fine-tuned from open weights", "gradient checkpointing (full)", "sequences packed",
        "gradients of 4 microbatches added up",
    ]  # fmt: skip


def test_the_card_of_a_student_names_its_teacher_and_that_of_a_pruned_base_says_so(tiny_run, tmp_path):
    teacher = {"path": "org/teacher", "adapter": "runs/a"}
    config = tiny_run("lora=null").model_copy(
        update={"distill": DistillSection(teacher=teacher, student={"params": 0.5}, match={"hidden": 1.0})}
    )
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": None})})
    text = card(config, {}, name="x", form="hf", num_bytes=2048, bytes_before=None)
    for words in (
        "base_model: org/teacher", "50 % of the parameters (all layers, fewer neurons) of its teacher `org/teacher`",
        "distilled from `org/teacher` with the adapter `runs/a`: forward kl and hidden states",
        "AutoModelForCausalLM.from_pretrained(FOLDER)",
    ):  # fmt: skip
        assert words.replace("50 %", show_percent(0.5)) in text
    assert "from zero" not in text

    said = {"method": "neurons", "num_params": 3, "num_params_before": 4, "zeros": 0.0}
    (tmp_path / "pruning.json").write_text(json.dumps(said))
    config = tiny_run(f"model.path={tmp_path}")
    assert f"base pruned by neurons: {show_percent(0.75)} of the parameters left" in cuts(config, {}, None)


def test_the_card_of_a_program_says_how_it_is_run(tiny_run):
    text = card(tiny_run(), {}, name="x", form="stablehlo", num_bytes=9, bytes_before=None, length=64)
    for words in ("library_name: jax", "python run.py", "rows of 64 tokens", "float32"):
        assert words in text
