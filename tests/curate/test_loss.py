from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.mark.usefixtures("small_machine")
def test_of_plain_texts_it_is_the_loss_of_all_tokens_and_no_row_is_left_out(
    corpus_of: Any, run_step: Any, tiny_base: Path
) -> None:
    import jax

    from jaxlean.hub.load import load

    texts = ["red house", "a blue train in the street"]
    values = {"model": {"path": str(tiny_base), "dtype": "float32"}, "data": {"max_length": 32}}
    found = run_step(corpus_of([{"text": text} for text in texts], **values), {"loss": None})
    assert len(found.rows) == 0
    model = load(tiny_base, "float32")
    for text, loss in zip(texts, found.scores["loss"], strict=True):
        ids = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id]
        logits = model(np.array([ids]))[0, :-1]
        wanted = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]].mean()
        np.testing.assert_allclose(loss, wanted, rtol=1e-4)
