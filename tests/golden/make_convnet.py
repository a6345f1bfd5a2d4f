"""Write the golden files of the convolutional families: small random checkpoints with what transformers gives.

    python tests/golden/make_convnet.py [--out tests/golden]

Needs torch and transformers (`pip install -e '.[parity]'`). The files are committed, and the same versions write the
same bytes again. Everything is float32; images are as transformers has them.

    <case>/config.json, model.safetensors
    <case>/expected.npz    pixel_values float32 [2, 3, H, W], logits float32 [2, labels], labels int64 [2],
                           loss float32 [] (mean cross entropy), grad:<Hugging Face name> for some parameters

Statistics of batches that a random network never saw would let its signal die out within a few layers. So they are
taken from images, and then moved by noise, or nothing would tell mean and var from 0 and 1.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import logging

VISIBLE = 0.02  # relative to the largest logit: what a change listed under `matters` has to move
TINY_V2 = {"depth_multiplier": 0.1, "min_depth": 4, "depth_divisible_by": 4, "expand_ratio": 2.0, "image_size": 32}
TINY_V2 |= {"finegrained_output": False, "num_labels": 5}
TINY_V1 = {"depth_multiplier": 0.1, "min_depth": 4, "image_size": 32, "num_labels": 5}
TINY_B = {"width_coefficient": 0.1, "depth_coefficient": 0.5, "depth_divisor": 4, "hidden_dim": 128, "image_size": 32}
TINY_B |= {"expand_ratios": [1, 2, 2, 3, 2, 2, 2], "num_labels": 5}

# name, config, (height, width), changes that must show, parameters whose gradient is written
CASES: list[tuple[str, dict[str, Any], tuple[int, int], list[dict[str, Any]], list[str]]] = [
    (
        "mobilenet_v2_same",
        TINY_V2,
        (50, 37),
        [{"tf_padding": False}, {"layer_norm_eps": 0.1}, {"hidden_act": "relu"}, {"output_stride": 16}],
        [
            "mobilenet_v2.conv_stem.first_conv.convolution.weight",
            "mobilenet_v2.conv_stem.conv_3x3.normalization.weight",
            "mobilenet_v2.layer.3.expand_1x1.convolution.weight",
            "mobilenet_v2.layer.3.conv_3x3.convolution.weight",
            "mobilenet_v2.layer.12.reduce_1x1.normalization.bias",
            "classifier.weight",
        ],
    ),
    (
        "mobilenet_v2_dilated",
        {**TINY_V2, "output_stride": 8, "tf_padding": False, "first_layer_is_expansion": False},
        (33, 40),
        [{"tf_padding": True}, {"output_stride": 16}],
        [],
    ),
    (
        "mobilenet_v2_finegrained",
        {**TINY_V2, "expand_ratio": 1.5, "finegrained_output": True, "output_stride": 16, "hidden_act": "gelu"},
        (32, 32),
        [{"hidden_act": "relu6"}, {"output_stride": 32}],
        [],
    ),
    (
        "mobilenet_v1_same",
        TINY_V1,
        (45, 38),
        [{"tf_padding": False}, {"layer_norm_eps": 0.1}, {"hidden_act": "relu"}],
        ["mobilenet_v1.layer.4.convolution.weight", "mobilenet_v1.layer.7.convolution.weight", "classifier.bias"],
    ),
    (
        "mobilenet_v1_smooth",
        {**TINY_V1, "depth_multiplier": 0.15, "hidden_act": "gelu", "layer_norm_eps": 0.05},
        (40, 33),
        [{"hidden_act": "relu6"}, {"layer_norm_eps": 0.2}, {"tf_padding": False}],
        [],
    ),
    ("mobilenet_v1_symmetric", {**TINY_V1, "tf_padding": False}, (32, 32), [{"tf_padding": True}], []),
    (
        "efficientnet_square",
        {**TINY_B, "depthwise_padding": [1, 5]},
        (46, 39),
        [{"depthwise_padding": []}, {"batch_norm_eps": 0.1}, {"hidden_act": "relu"}],
        [
            "efficientnet.embeddings.convolution.weight",
            "efficientnet.encoder.blocks.2.squeeze_excite.reduce.weight",
            "efficientnet.encoder.blocks.2.squeeze_excite.expand.bias",
            "efficientnet.encoder.blocks.3.expansion.expand_conv.weight",
            "efficientnet.encoder.blocks.4.depthwise_conv.depthwise_conv.weight",
            "efficientnet.encoder.top_bn.weight",
            "classifier.weight",
        ],
    ),
    (
        "efficientnet_tall",
        {**TINY_B, "depth_coefficient": 1.0, "squeeze_expansion_ratio": 0.5, "pooling_type": "max"},
        (64, 64),
        [{"pooling_type": "mean"}],
        [],
    ),
    (
        "efficientnet_kernels",
        {**TINY_B, "kernel_sizes": [3, 5, 3, 5, 3, 5, 7], "hidden_act": "relu", "squeeze_expansion_ratio": 1.0},
        (32, 48),
        [],
        [],
    ),
]


def build(name: str, config: dict[str, Any], size: tuple[int, int], **changes: Any) -> Any:
    """A model with the case's weights (the seed is in the name), in eval mode."""
    family = name.rsplit("_", 1)[0]
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(family, **{**config, **changes}))
    generator = torch.Generator().manual_seed(seed_of(name))

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                parameter.copy_(noise(parameter) * (2.0 / parameter[0].numel()) ** 0.5)
            elif parameter_name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise(parameter))
            else:
                parameter.copy_(0.3 * noise(parameter))
    if changes:  # other statistics would move the logits, whatever the change does
        model.load_state_dict(build(name, config, size).state_dict())
        return model.eval()

    def meet(norm: Any, inputs: tuple[torch.Tensor]) -> None:
        """Statistics of what arrives, and not quite: the layers after it see what comes of that."""
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_mean.copy_(mean + 0.2 * var.sqrt() * noise(mean))
        norm.running_var.copy_(var * torch.exp(0.3 * noise(var)))
        norm.num_batches_tracked.fill_(1234)

    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(meet) for norm in norms]
    with torch.no_grad():
        model.eval()(torch.randn((64, 3, *size), generator=generator))
    for hook in hooks:
        hook.remove()
    return model.eval()


def seed_of(name: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31


def write_case(
    name: str,
    config: dict[str, Any],
    size: tuple[int, int],
    matters: list[dict[str, Any]],
    gradients: list[str],
    out: Path,
) -> None:
    """Write one checkpoint and what it gives, read back from the files."""
    shutil.rmtree(out, ignore_errors=True)
    build(name, config, size).save_pretrained(out)
    tidy = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(tidy, indent=1, sort_keys=True) + "\n")
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    generator = torch.Generator().manual_seed(seed_of(name) + 1)
    pixels = torch.randn((2, 3, *size), generator=generator)
    labels = torch.tensor([1, 4])
    outputs = model(pixel_values=pixels, labels=labels)
    outputs.loss.backward()
    logits, largest = outputs.logits.detach(), float(outputs.logits.detach().abs().max())
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-5 * largest, f"{name}: {parameter_name} carries no gradient"
    expected = {"pixel_values": pixels.numpy(), "logits": logits.numpy(), "labels": labels.numpy()}
    expected["loss"] = outputs.loss.detach().numpy()
    named = dict(model.named_parameters())
    expected |= {f"grad:{key}": named[key].grad.numpy() for key in gradients}
    np.savez(out / "expected.npz", **expected)

    def effect(other: Any) -> float:
        with torch.no_grad():
            return float((other(pixels.to(other.dtype)).logits - logits).abs().max()) / largest

    effects = [effect(build(name, config, size, **change)) for change in matters]
    for change, moved in zip(matters, effects, strict=True):
        assert moved > VISIBLE, f"{name}: {change} moves the logits by only {moved:.4f}"
    off = effect(build(name, config, size).double())
    assert off < 3e-5, f"{name}: float32 alone is {off:.1e} away; 1e-4 would not be fair"
    kilobytes = sum(file.stat().st_size for file in out.iterdir()) / 1000
    print(f"{name:<28}{kilobytes:>7.0f} KB  |logit| {largest:>6.2f}  noise {off:.1e}  least effect", end=" ")
    print(f"{min(effects):.3f}" if effects else "-")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden files of the convolutional families.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that receives them")
    out = parser.parse_args().out
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the order of a sum may depend on the number of threads
    for name, *case in CASES:
        write_case(name, *case, out / name)


if __name__ == "__main__":
    main()
