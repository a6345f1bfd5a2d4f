"""Write one golden checkpoint, and prove that its numbers tell right from wrong."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from cases import Case
from drawing import build, draw_inputs, draw_labels, drawn_buffers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

VISIBLE = 0.05  # a change that moves no logit by this much would not be noticed well above the tolerance of 1e-4


# Our names of what a model is given. Images have their channels last here, in transformers first.
INPUTS = {
    "tokens": "input_ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
    "pixels": "pixel_values",
}


def as_ours(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What expected.npz says of a model's inputs."""
    found = {ours: inputs[theirs] for ours, theirs in INPUTS.items() if theirs in inputs}
    return {
        name: x.permute(0, 2, 3, 1).contiguous().numpy() if name == "pixels" else x.numpy().astype(np.int32)
        for name, x in found.items()
    }


def as_theirs(expected: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The inputs of transformers from an expected.npz."""
    found = {theirs: torch.from_numpy(expected[ours]) for ours, theirs in INPUTS.items() if ours in expected}
    return {
        name: x.permute(0, 3, 1, 2).contiguous() if name == "pixel_values" else x.long() for name, x in found.items()
    }


def outputs_of(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is compared, by its name in expected.npz."""
    dtype = next(model.parameters()).dtype
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    if hasattr(model, "generate"):
        given["use_cache"] = False
    found = model(**given)
    if "logits_per_image" in found:
        return {name: found[name] for name in ("logits_per_image", "text_embeds", "image_embeds")}
    name, values = ("logits", found["logits"]) if "logits" in found else ("hidden", found["last_hidden_state"])
    if "attention_mask" in inputs and values.ndim == 3:
        values = values.where(inputs["attention_mask"][..., None] == 1, 0.0)
    return {name: values}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of any number."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def outputs_without_gradient(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return outputs_of(model, inputs)


def load(case: Case, folder: Path) -> Any:
    """The model as transformers reads it."""
    kind = getattr(transformers, case.head)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    for held in [*model.parameters(), *model.buffers()]:
        held.data = held.data.clone()  # off the file: how a convolution sums depends on where its kernel lies in memory
    return model


def loss_of(
    outputs: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor], labels: torch.Tensor | None
) -> torch.Tensor:
    """The loss that is trained with: of the next token, of the labels, or of images and texts finding each other."""
    scores = next(iter(outputs.values()))
    if "logits_per_image" in outputs:
        pairs = torch.arange(len(scores))
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(scores, pairs) + cross_entropy(scores.T, pairs)) / 2
    if labels is None:
        scores, labels = scores[:, :-1], inputs["input_ids"][:, 1:]
    return torch.nn.functional.cross_entropy(scores.flatten(0, -2), labels.flatten())


def write_case(case: Case, out: Path) -> dict[str, Any]:
    """Write one checkpoint and what it gives, read back from the files; returns a row of the table."""
    model = build(case)
    inputs = draw_inputs(case, model)
    model.save_pretrained(out, max_shard_size="40KB" if case.sharded else "1GB")
    (out / "generation_config.json").unlink(missing_ok=True)
    assert (out / "model.safetensors.index.json").exists() == case.sharded
    if case.leftovers or case.old_names:
        age_tensors(out / "model.safetensors", model, case)
    tidy_config(out / "config.json", case, wanted=model.config)

    loaded = load(case, out)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    outputs = outputs_without_gradient(loaded, inputs)
    again = outputs_without_gradient(build(case), inputs)
    assert all(torch.equal(outputs[name], again[name]) for name in outputs), (
        f"{case.name}: another model came back from the files"
    )
    causal = case.head == "AutoModelForCausalLM" or "logits_per_image" in outputs
    labels = None if causal else draw_labels(case, outputs, inputs)
    loss = loss_of(outputs_of(loaded, inputs), inputs, labels)
    loss.backward()
    gradients = as_on_file(loaded, {name: parameter.grad for name, parameter in loaded.named_parameters()})
    for name, gradient in gradients.items():
        assert name.endswith(case.mute) or gradient.abs().max() > 1e-3, (
            f"{case.name}: {name} carries no gradient, so nothing would tell if it were wrong"
        )
    expected = as_ours(inputs)
    expected |= {name: value.numpy() for name, value in outputs.items()}
    if case.gradients:
        if labels is not None:
            expected["labels"] = labels.numpy().astype(np.int32)
        expected["loss"] = loss.detach().numpy()
        expected |= {f"grad:{name}": gradients[name].numpy() for name in case.gradients}
    if case.aux_loss:
        with torch.no_grad():
            expected["aux_loss"] = loaded(**inputs, output_router_logits=True).aux_loss.numpy()
    np.savez(out / "expected.npz", **expected)

    effects = [distance(outputs_without_gradient(build(case, **change), inputs), outputs) for change in case.matters]
    for change, effect in zip([*case.matters], effects, strict=True):
        assert effect > VISIBLE, f"{case.name}: {change} moves the logits by only {effect:.3f}"
    for ending in sorted({path.rpartition(".")[2] for path in drawn_buffers(model)}):
        plain = build(case)
        for path, buffer in drawn_buffers(plain).items():
            if path.endswith(ending):
                buffer.fill_(float(ending == "running_var"))
        effects.append(distance(outputs_without_gradient(plain, inputs), outputs))
        assert effects[-1] > VISIBLE, f"{case.name}: {ending} moves the logits by only {effects[-1]:.3f}"
    noise = distance(outputs_without_gradient(build(case).double(), inputs), outputs)
    assert noise < 3e-5, f"{case.name}: float32 alone is {noise:.1e} away; 1e-4 would not be fair"
    return {
        "bytes": size_of(out),
        "logit": max(float(value.abs().max()) for value in outputs.values()),
        "noise": noise,
        "effect": min(effects, default=None),
    }


def as_on_file(model: Any, tensors: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """Tensors of the model's parameters, under the names and in the shapes that the file of the model has.

    transformers 5 holds some otherwise: all experts of a layer are one parameter.
    """
    held = {name: torch.zeros(()) if tensor is None else tensor for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=held)
        return load_file(f"{folder}/model.safetensors")


def age_tensors(file: Path, model: Any, case: Case) -> None:
    """Give the file the names of old hub files, and tensors that they hold and readers have to pass over."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    if case.leftovers:
        tensors |= LEFTOVERS.get(case.name, LEFTOVERS.get(case.family))(model, tensors)
    for pattern, replacement in case.old_names:
        tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})


def llama_leftovers(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        **{
            f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": model.model.rotary_emb.inv_freq.clone()
            for layer in range(model.config.num_hidden_layers)
        },
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
    }


def gpt2_leftovers(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    length = model.config.n_positions
    mask = torch.tril(torch.ones(1, 1, length, length))
    return {f"transformer.h.{layer}.attn.bias": mask.clone() for layer in range(model.config.n_layer)}


def neox_leftovers(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    length = model.config.max_position_embeddings
    mask = torch.tril(torch.ones(1, 1, length, length, dtype=torch.bool))
    found = {}
    for layer in range(model.config.num_hidden_layers):
        attention = f"gpt_neox.layers.{layer}.attention"
        found[f"{attention}.bias"] = mask.clone()
        found[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        found[f"{attention}.rotary_emb.inv_freq"] = model.gpt_neox.rotary_emb.inv_freq.clone()
    return found


def bert_leftovers(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"embeddings.position_ids": torch.arange(model.config.max_position_embeddings)[None]}


def pretraining_leftovers(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return bert_leftovers(model, tensors) | {"cls.predictions.bias": torch.zeros(model.config.vocab_size)}


def clip_leftovers(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    text, patches = model.config.text_config, model.vision_model.embeddings.num_positions
    return {
        "text_model.embeddings.position_ids": torch.arange(text.max_position_embeddings)[None],
        "vision_model.embeddings.position_ids": torch.arange(patches)[None],
    }


def deepseek_leftovers(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    last, width = model.config.num_hidden_layers, model.config.hidden_size
    return {
        f"model.layers.{last}.enorm.weight": torch.ones(width),
        f"model.layers.{last}.eh_proj.weight": torch.ones(width, 2 * width),
        f"model.layers.{last}.self_attn.o_proj.weight": tensors["model.layers.0.self_attn.o_proj.weight"].clone(),
    }


LEFTOVERS = {
    "bert": bert_leftovers,
    "bert_old": pretraining_leftovers,
    "clip": clip_leftovers,
    "deepseek_v3": deepseek_leftovers,
    "gpt2": gpt2_leftovers,
    "gpt_neox": neox_leftovers,
    "llama": llama_leftovers,
}


def tidy_config(file: Path, case: Case, *, wanted: Any) -> None:
    """Rewrite config.json without what depends on the machine; in the old style, prove that it still means the same."""
    config = json.loads(file.read_text())
    if case.old_style:
        parameters = config.pop("rope_parameters")
        rope_type, theta = parameters.pop("rope_type"), parameters.pop("rope_theta")
        # Both spellings are on the hub: `type` (Llama 2, Qwen2.5) and, later, `rope_type` (Llama 3.1).
        key = "rope_type" if rope_type == "llama3" else "type"
        config["rope_scaling"] = None if rope_type == "default" else {key: rope_type, **parameters}
        if theta != wanted.default_theta:  # the first Llama files have no rope_theta at all
            config["rope_theta"] = theta
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.40.0"
        config.pop("layer_types", None)
        # What the first files of a family leave to its defaults.
        if (
            config["model_type"] in ("llama", "mistral")
            and config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]
        ):
            del config["head_dim"]
        if config["model_type"] == "llama" and config["num_key_value_heads"] == config["num_attention_heads"]:
            del config["num_key_value_heads"]
        if config.get("use_sliding_window") is False:
            config["sliding_window"] = 7  # Qwen's files hold a width and switch it off
    config |= case.on_file
    config = {key: value for key, value in config.items() if not (key in case.on_file and value is None)}
    file.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    loaded, original = AutoConfig.from_pretrained(file.parent).to_dict(), wanted.to_dict()
    for meant in (loaded, original):
        if meant.get("rope_parameters"):
            meant["rope_parameters"].pop("type", None)
    differing = {key for key in original if loaded.get(key) != original[key]}
    assert differing <= {"transformers_version", "torch_dtype", "dtype", "_name_or_path"}, {
        key: (loaded.get(key), original[key]) for key in differing
    }


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
