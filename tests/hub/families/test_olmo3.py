"""OLMo 3 checkpoints: OLMo 2 with layers of two kinds, of which one stretches its rope."""

from pathlib import Path

import pytest

from jaxlean.hub.families.olmo3 import FAMILY

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("olmo3_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, parity, round_trip, token_by_token):
    parity(case)
    round_trip(case)
    token_by_token(case)


def test_all_cases_are_there():
    assert len(CASES) == 3


PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "attention_factor": 1.3,
}  # fmt: skip


@pytest.mark.parametrize(
    "parameters",
    [
        {"full_attention": YARN, "sliding_attention": PLAIN},
        YARN,  # as transformers 5.0 writes and reads one
        YARN | {"full_attention": PLAIN, "sliding_attention": PLAIN},  # as a newer one reads that
        PLAIN | {"full_attention": YARN, "sliding_attention": PLAIN},  # as 5.0 reads what a newer one wrote
    ],
)
def test_a_rope_is_stretched_where_a_layer_sees_everything(golden, parameters):
    from transformers import AutoConfig

    hf = AutoConfig.from_pretrained(golden / "olmo3_old")
    hf.rope_parameters = parameters
    config = FAMILY.config(hf)
    whole, local = config.rope, config.local_rope
    assert (whole.rope_type, whole.rope_theta, whole.factor, whole.attention_factor) == ("yarn", 500000.0, 4.0, 1.3)
    assert (local.rope_type, local.rope_theta, local.attention_factor) == ("default", 500000.0, 1.0)
