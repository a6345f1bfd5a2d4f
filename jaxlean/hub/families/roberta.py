"""RoBERTa (arXiv 1907.11692): BERT, whose positions begin behind the number of the padding token."""

from typing import TYPE_CHECKING

from jaxlean.hub.families import bert
from jaxlean.hub.family import Family
from jaxlean.models.encoder import EncoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _config(hf: "PreTrainedConfig") -> EncoderConfig:
    first = (hf.pad_token_id or 0) + 1
    return bert.encoder_config(hf, first_position=first, max_position_embeddings=hf.max_position_embeddings - first)


FAMILY = Family(
    model_type="roberta",
    architecture="RobertaModel",
    config=_config,
    modules={ours: theirs.replace("bert.", "roberta.", 1) for ours, theirs in bert.MODULES.items()},
    heads={
        "classify": {"classifier.dense": "classifier.dense", "classifier.scores": "classifier.out_proj"},
        "tag": {"classifier.scores": "classifier"},
    },
    prefix="roberta.",
    ignored=(r"^lm_head\.", r"^qa_outputs\.", r"^classifier\.", r"\.position_ids$"),
    carried=(r"^pooler\.",),
    unsupported=bert.UNSUPPORTED,
)
