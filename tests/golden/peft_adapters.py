"""Write one golden adapter as PEFT does, and what the adapted model gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from cases import ADAPTERS, Case
from checkpoints import VISIBLE, as_ours, as_theirs, distance, load, outputs_without_gradient, size_of
from drawing import MARGIN, router_margin, seed_of

# PEFT has no task for images: there the head is named.
TASKS: dict[str, dict[str, Any]] = {
    "AutoModelForCausalLM": {"task_type": "CAUSAL_LM"},
    "AutoModelForSequenceClassification": {"task_type": "SEQ_CLS"},
    "AutoModelForImageClassification": {"modules_to_save": ["classifier"]},
    "CLIPForImageClassification": {"modules_to_save": ["classifier"]},
    "CLIPModel": {},
}


def write_adapter(case: Case, variant: str, out: Path) -> dict[str, Any]:
    """Write a PEFT adapter with random A, B (and DoRA magnitudes), and the logits of the adapted model."""
    base = out.parents[1] / case.name
    expected = dict(np.load(base / "expected.npz"))
    inputs = as_theirs(expected)
    plain = outputs_without_gradient(load(case, base), inputs)
    config = peft.LoraConfig(**TASKS[case.head], **ADAPTERS[variant])
    adapted = peft.get_peft_model(load(case, base), config).eval()
    generator = torch.Generator().manual_seed(seed_of(out.name))
    draw_adapter(adapted, generator)
    while router_margin(adapted, inputs) < MARGIN:
        draw_adapter(adapted, generator)
    adapted.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    tidy_config(out / "adapter_config.json", case)

    outputs = outputs_without_gradient(adapted, inputs)
    fresh = peft.PeftModel.from_pretrained(load(case, base), out).eval()
    again = outputs_without_gradient(fresh, inputs)
    assert all(torch.equal(outputs[name], again[name]) for name in outputs), (
        f"{out.name}: another adapter came back from the files"
    )
    np.savez(out / "expected.npz", **as_ours(inputs), **{name: value.numpy() for name, value in outputs.items()})
    effect = distance(outputs, plain)
    assert effect > VISIBLE, f"{out.name}: the adapter moves the logits by only {effect:.3f}"
    largest = max(float(value.abs().max()) for value in outputs.values())
    return {"bytes": size_of(out), "logit": largest, "noise": None, "effect": effect}


def draw_adapter(adapted: Any, generator: torch.Generator) -> None:
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude_vector" in name:
                parameter.mul_(1.0 + 0.2 * noise)
            elif "lora_" in name:
                parameter.copy_(0.2 * noise)
            elif "modules_to_save" in name:
                parameter.add_(0.2 * noise)


def tidy_config(file: Path, case: Case) -> None:
    """Rewrite adapter_config.json without what depends on the machine or on the order of a set."""
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = case.name  # not the absolute path of this machine
    for key in ("target_modules", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])  # PEFT holds a set
    file.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
