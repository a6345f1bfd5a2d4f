"""What a case is: one checkpoint's shape, and the changes of its config that must show in what the model gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


# What the decoders after Llama and its like begin with.
BASE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Case:
    """One checkpoint.

    Attributes:
        name: its folder; the part before the first `_` names the family, without its own underscores.
        config: what differs from `base`.
        matters: config changes, each of which must move the logits; shapes have to stay as they are.
        base: the config that the family's cases share.
        model_type: Hugging Face's; by default the first part of `name`.
        head: the class of transformers that the model is.
        old_style: write config.json as transformers 4 did: `rope_theta` and `rope_scaling` in place of
            `rope_parameters`, `torch_dtype`, no `layer_types`.
        on_file: keys of config.json as files on the hub have them (None: they have not); the meaning must stay.
        sharded: write several files and an index.
        leftovers: add what old hub files carry without need: rotary buffers, masks, position numbers, and `lm_head`
            although it is tied.
        old_names: (pattern, replacement) for the tensors' names, so that the file has those of old hub files.
        gradients: tensors of the file whose gradient is written.
        aux_loss: also write the load-balancing loss of the routers.
        mute: name endings of tensors that cannot carry gradient (a key's bias shifts all scores of a row alike).
        length: T, tokens in a row.
        lengths: how many tokens of each row are real; the rest is padding, `attention_mask` is written, and what the
            model gives at the padding is written as zeros.
        image: height and width of the images that it is given; by default what its config says.
        segments: give `token_type_ids` of both kinds.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    matters: Sequence[dict[str, Any]] = ()
    base: dict[str, Any] = field(default_factory=lambda: SMALL)
    model_type: str = ""
    head: str = "AutoModelForCausalLM"
    old_style: bool = False
    on_file: dict[str, Any] = field(default_factory=dict)
    sharded: bool = False
    leftovers: bool = False
    old_names: Sequence[tuple[str, str]] = ()
    gradients: Sequence[str] = ()
    aux_loss: bool = False
    mute: tuple[str, ...] = ()
    length: int = 24
    lengths: tuple[int, ...] = ()
    image: tuple[int, int] | None = None
    segments: bool = False

    @property
    def family(self) -> str:
        return self.model_type or self.name.split("_")[0]


def rope(rope_type: str = "default", theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    """The `rope_parameters` entry of a config."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **parameters}}


def two_ropes(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    """The `rope_parameters` of a family whose layers that slide have a rope of their own."""
    return {
        "rope_parameters": {
            "full_attention": full["rope_parameters"],
            "sliding_attention": sliding["rope_parameters"],
        }
    }


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    "long_factor": [1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
}
