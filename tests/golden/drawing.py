"""What is drawn at random: a model's weights, and what it is given. The seeds are in the cases' names."""

import json
from typing import Any

import torch
import transformers
from cases import Case
from torch import nn
from transformers import AutoConfig

MARGIN = 1e-3  # between the last expert that a token goes to and the next: float32 must not decide


def seed_of(name: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31


def build(case: Case, **changes: Any) -> Any:
    """A model of the case's shape, with the case's weights, in eval mode."""
    config = AutoConfig.for_model(case.family, **json.loads(json.dumps({**case.base, **case.config, **changes})))
    config._attn_implementation = "eager"
    kind = getattr(transformers, case.head)
    make = kind.from_config if case.head.startswith("Auto") else kind._from_config
    model = make(config, dtype=torch.float32, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    draw_weights(model, case.name)
    return model


def draw_weights(model: nn.Module, name: str) -> None:
    """Fill the parameters with noise as large as makes each detail of a small model show.

    Other rope, window or length: the same weights; that is why the draws depend on the case's name alone.
    """
    generator = torch.Generator().manual_seed(seed_of(name))
    modules = dict(model.named_modules())
    with torch.no_grad():
        for path, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            owner, _, leaf = path.rpartition(".")
            module = modules[owner]
            if is_norm(module) and leaf == "weight":
                identity = float("Gemma" not in type(module).__name__)  # Gemma's norms scale by 1 + weight
                parameter.copy_(identity + 0.3 * noise)
            elif path.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif isinstance(module, nn.Embedding) or leaf in BARE_EMBEDDINGS or owner.endswith(HEADS):
                parameter.copy_(0.4 * noise)
            elif isinstance(module, nn.Conv2d):  # from few inputs to many: as large after it as before
                parameter.copy_(noise * (2.0 / parameter[0].numel()) ** 0.5)
            elif leaf == "logit_scale":
                parameter.copy_(2.0 + 0.3 * noise)
            else:
                parameter.copy_(0.2 * noise)
        for path, buffer in sorted(drawn_buffers(model).items()):
            noise = torch.randn(buffer.shape, generator=generator)
            if path.endswith("running_var"):
                buffer.copy_(torch.exp(0.3 * noise))
            else:  # a correction of scores smaller than their spread: with a larger one some experts get no token
                buffer.copy_((0.3 if path.endswith("running_mean") else 0.1) * noise)


BARE_EMBEDDINGS = ("cls_token", "position_embeddings", "class_embedding")
HEADS = ("lm_head", "embed_out", "classifier", "classifier.out_proj")
STATISTICS = ("running_mean", "running_var", "e_score_correction_bias")


def is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("Norm", "BatchNorm2d"))


def drawn_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds and no gradient reaches."""
    return {path: buffer for path, buffer in model.named_buffers() if path.endswith(STATISTICS)}


def draw_inputs(case: Case, model: Any) -> dict[str, torch.Tensor]:
    """What the model is called with, by transformers' names; drawn again until no expert is chosen by a hair."""
    generator = torch.Generator().manual_seed(seed_of(case.name) + 1)
    for _ in range(1000):
        inputs = draw(case, model.config, generator)
        if router_margin(model, inputs) > MARGIN:
            return inputs
    raise AssertionError(f"{case.name}: the routers are undecided whatever they are given")


def draw(case: Case, config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    inputs = {}
    text, vision = getattr(config, "text_config", config), getattr(config, "vision_config", config)
    if hasattr(text, "vocab_size") and not case.head.endswith("ImageClassification"):
        tokens = torch.randint(3, text.vocab_size, (2, case.length), generator=generator)
        if case.lengths:
            ends = torch.tensor(case.lengths)[:, None]
            if hasattr(config, "text_config"):  # CLIP looks for the end of the text
                end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
                tokens = tokens.where(tokens != end, 3).scatter(1, ends - 1, end)
            real = torch.arange(case.length) < ends
            tokens = tokens.where(real, text.pad_token_id)
            inputs["attention_mask"] = real.long()
        inputs["input_ids"] = tokens
        if case.segments:
            inputs["token_type_ids"] = (torch.arange(case.length) > case.length // 3).long().repeat(2, 1)
    if hasattr(vision, "image_size"):
        stated = vision.image_size if isinstance(vision.image_size, list) else [vision.image_size] * 2
        size = case.image or stated
        inputs["pixel_values"] = torch.randn(2, vision.num_channels, *size, generator=generator)
    return inputs


def draw_labels(case: Case, outputs: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A class for each row of logits (or of what is hidden), -100 at padding."""
    scores = next(iter(outputs.values()))
    generator = torch.Generator().manual_seed(seed_of(case.name) + 2)
    labels = torch.randint(0, scores.shape[-1], scores.shape[:-1], generator=generator)
    if "attention_mask" in inputs and labels.ndim == 2:
        labels = labels.where(inputs["attention_mask"].bool(), -100)
    return labels


class _Margins(torch.overrides.TorchFunctionMode):
    """Watches torch.topk, by which all routers choose."""

    def __init__(self) -> None:
        super().__init__()
        self.least = float("inf")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.topk, torch.Tensor.topk):
            scores, k = args[0], kwargs.get("k", args[1] if len(args) > 1 else None)
            ordered = scores.sort(dim=-1, descending=True).values
            if k < scores.shape[-1]:
                self.least = min(self.least, float((ordered[..., k - 1] - ordered[..., k]).min()))
        return func(*args, **kwargs)


def router_margin(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """The least distance in score between an expert (or a group of them) just chosen and the next; inf without any."""
    with torch.no_grad(), _Margins() as margins:
        model(**inputs)
    return margins.least
