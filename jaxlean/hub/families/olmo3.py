"""OLMo 3 (arXiv 2512.13961): OLMo 2 with three layers with a window to one without, which alone stretch their rope."""

from typing import TYPE_CHECKING

from jaxlean.hub.families import olmo2
from jaxlean.hub.family import Family, decoder_config, layer_kinds, rope
from jaxlean.models.config import Kind
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.rope import Rope

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _config(hf: "PreTrainedConfig") -> DecoderConfig:
    whole, local = _ropes(hf)
    return decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        qk_norm="all",
        norm_at=("output",),
        rope=whole,
        local_rope=local,
        kinds=tuple(
            Kind(window=hf.sliding_window, rope="local_rope") if slides else Kind() for slides in layer_kinds(hf)
        ),
    )


def _ropes(hf: "PreTrainedConfig") -> tuple[Rope, Rope]:
    """Of the layers that see everything, and of those with a window.

    transformers 5.0 knew one for all: it is that of the former, and the latter's is the same, but not stretched. Newer
    versions have one for each, keep such an old one beside them, and do not read it; 5.0 keeps the newer ones.
    """
    given = hf.rope_parameters
    if "full_attention" not in given or given.get("rope_type", "default") != "default":
        return rope(hf), rope(hf, rope_type="default", attention_factor=1.0)
    return rope(hf, "full_attention"), rope(hf, "sliding_attention")


FAMILY = Family(model_type="olmo3", architecture="Olmo3ForCausalLM", config=_config, modules=olmo2.MODULES)
