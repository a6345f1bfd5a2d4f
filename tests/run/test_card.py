"""The card of an exported model: what it says, and what it does not know."""

from jaxlean.run.card import card, cuts


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
