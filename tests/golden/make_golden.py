"""Write the golden files: small random Hugging Face checkpoints with the numbers that transformers and PEFT give.

    python tests/golden/make_golden.py [--out tests/golden]         (cases.py says which)

Needs torch, transformers and peft (`pip install -e '.[parity]'`); the tests that read the files need none of them.
The files are committed, and the same versions write the same bytes again. Everything is float32.

    <case>/config.json, model.safetensors (or shards and their index)
    <case>/expected.npz       tokens int32 [2, T], logits float32 [2, T, V]; for one case a family also
                              loss float32 [] (mean next-token cross-entropy) and grad:<Hugging Face name>
    adapters/<base>__<variant>/adapter_config.json, adapter_model.safetensors, and an expected.npz of the adapted model
    rope.json                 for many rope settings and lengths: inv_freq, and the factor on cos and sin

A golden file is worth what it can tell apart. So the weights are drawn large enough that each detail moves the
logits, and this script proves it: every parameter must carry gradient, and each change of the config listed under
`matters` must move a logit by more than `VISIBLE`. `noise` is the distance to the same model in float64, so that
the tests' tolerance of 1e-4 is known to be fair.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from cases import ADAPTED, ADAPTERS, CASES, LLAMA3, SMALL, YARN, Case, rope
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import logging

VISIBLE = 0.05  # a change that moves no logit by this much would not be noticed well above the tolerance of 1e-4


def build(case: Case, **changes: Any) -> Any:
    """A model of the case's shape, with the case's weights (the seed is in the name), in eval mode."""
    config = AutoConfig.for_model(case.family, **json.loads(json.dumps({**SMALL, **case.config, **changes})))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    # Other rope, window or length: the same weights; that is why the draws depend on the case's name alone.
    generator = torch.Generator().manual_seed(seed_of(case.name))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.4 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return model


def seed_of(name: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31


def draw_tokens(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed_of(case.name) + 1)
    return torch.randint(3, SMALL["vocab_size"], (2, case.length), generator=generator)


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def write_case(case: Case, out: Path) -> dict[str, Any]:
    """Write one checkpoint and what it gives, read back from the files; returns a row of the table."""
    model, tokens = build(case), draw_tokens(case)
    model.save_pretrained(out, max_shard_size="40KB" if case.sharded else "1GB")
    (out / "generation_config.json").unlink(missing_ok=True)
    assert (out / "model.safetensors.index.json").exists() == case.sharded
    if case.leftovers:
        add_leftovers(out / "model.safetensors", model)
    tidy_config(out / "config.json", old_style=case.old_style, wanted=model.config)

    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    logits = logits_of(loaded, tokens)
    assert torch.equal(logits, logits_of(build(case), tokens)), f"{case.name}: another model came back from the files"
    loss = torch.nn.functional.cross_entropy(
        loaded(input_ids=tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in loaded.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-3, (
            f"{case.name}: {name} carries no gradient, so nothing would tell if it were wrong"
        )
    expected = {"tokens": tokens.numpy().astype(np.int32), "logits": logits.numpy()}
    if case.gradients:
        expected["loss"] = loss.detach().numpy()
        expected |= {f"grad:{name}": gradients[name].numpy() for name in case.gradients}
    np.savez(out / "expected.npz", **expected)

    effects = [float((logits_of(build(case, **change), tokens) - logits).abs().max()) for change in case.matters]
    for change, effect in zip(case.matters, effects, strict=True):
        assert effect > VISIBLE, f"{case.name}: {change} moves the logits by only {effect:.3f}"
    noise = float((logits_of(build(case).double(), tokens) - logits).abs().max())
    assert noise < 3e-5, f"{case.name}: float32 alone is {noise:.1e} away; 1e-4 would not be fair"
    return {
        "bytes": size_of(out),
        "logit": float(logits.abs().max()),
        "noise": noise,
        "effect": min(effects, default=None),
    }


def add_leftovers(file: Path, model: Any) -> None:
    """Add tensors that old hub files hold and that readers have to pass over."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    for layer in range(model.config.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = model.model.rotary_emb.inv_freq.clone()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})


def tidy_config(file: Path, *, old_style: bool, wanted: Any) -> None:
    """Rewrite config.json without what depends on the machine; in the old style, prove that it still means the same."""
    config = json.loads(file.read_text())
    if old_style:
        parameters = config.pop("rope_parameters")
        rope_type, theta = parameters.pop("rope_type"), parameters.pop("rope_theta")
        # Both spellings are on the hub: `type` (Llama 2, Qwen2.5) and, later, `rope_type` (Llama 3.1).
        key = "rope_type" if rope_type == "llama3" else "type"
        config["rope_scaling"] = None if rope_type == "default" else {key: rope_type, **parameters}
        if theta != 10000.0:  # the first Llama files have no rope_theta at all
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
    file.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    loaded, original = AutoConfig.from_pretrained(file.parent).to_dict(), wanted.to_dict()
    for parameters in (loaded["rope_parameters"], original["rope_parameters"]):
        parameters.pop("type", None)
    differing = {k for k in {*loaded, *original} if loaded.get(k) != original.get(k)}
    assert differing <= {"transformers_version", "torch_dtype", "dtype", "_name_or_path"}, differing


def write_adapter(base: Path, variant: str, out: Path) -> dict[str, Any]:
    """Write a PEFT adapter with random A, B (and DoRA magnitudes), and the logits of the adapted model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = torch.from_numpy(np.load(base / "expected.npz")["tokens"]).long()
    plain = logits_of(model, tokens)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[variant])).eval()
    generator = torch.Generator().manual_seed(seed_of(out.name))
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude_vector" in name:
                parameter.mul_(1.0 + 0.2 * noise)
            elif "lora_" in name:
                parameter.copy_(0.2 * noise)
    adapted.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base.name  # not the absolute path of this machine
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])  # PEFT holds a set
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

    fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    logits = logits_of(peft.PeftModel.from_pretrained(fresh, out).eval(), tokens)
    assert torch.equal(logits, logits_of(adapted, tokens)), f"{out.name}: another adapter came back from the files"
    np.savez(out / "expected.npz", tokens=tokens.numpy().astype(np.int32), logits=logits.numpy())
    effect = float((logits - plain).abs().max())
    assert effect > VISIBLE, f"{out.name}: the adapter moves the logits by only {effect:.3f}"
    return {"bytes": size_of(out), "logit": float(logits.abs().max()), "noise": None, "effect": effect}


def write_rope(file: Path) -> dict[str, Any]:
    """Write what transformers computes for rope settings that a whole checkpoint each would be too much for."""
    factors = {key: [1.0 + step * i for i in range(32)] for key, step in (("short_factor", 0.01), ("long_factor", 0.2))}
    phi = {"original_max_position_embeddings": 4096, **factors}
    llama31 = {**LLAMA3, "original_max_position_embeddings": 8192}
    qwen = {"factor": 4.0, "original_max_position_embeddings": 32768}
    settings: list[tuple[int, int, dict[str, Any], Sequence[int]]] = [
        # head_dim, max_position_embeddings, rope_parameters, lengths
        (128, 4096, rope()["rope_parameters"], [4096]),
        (64, 8192, rope(theta=500000.0)["rope_parameters"], [8192]),
        (128, 8192, rope("linear", factor=4.0)["rope_parameters"], [8192]),
        (128, 2048, rope("dynamic", factor=2.0)["rope_parameters"], [1, 2048, 2049, 8192]),
        (64, 131072, rope("llama3", theta=500000.0, **{**llama31, "factor": 32.0})["rope_parameters"], [16]),
        (128, 131072, rope("llama3", theta=500000.0, **llama31)["rope_parameters"], [16]),
        (128, 32768, rope("yarn", theta=1000000.0, **qwen)["rope_parameters"], [16]),
        (128, 131072, rope("yarn", **qwen, truncate=False)["rope_parameters"], [16]),
        (64, 16384, rope("yarn", **YARN, attention_factor=0.8, beta_fast=8, beta_slow=2)["rope_parameters"], [16]),
        (64, 163840, rope("yarn", **YARN, mscale=0.707, mscale_all_dim=1.0)["rope_parameters"], [16]),
        (64, 4096, rope("yarn", **{**YARN, "factor": 1.0})["rope_parameters"], [16]),
        (64, 131072, rope("longrope", **phi)["rope_parameters"], [1, 4096, 4097]),
        (64, 131072, rope("longrope", **phi, factor=8.0)["rope_parameters"], [4097]),
        (64, 131072, rope("longrope", **phi, attention_factor=1.25)["rope_parameters"], [4097]),
        (64, 4096, rope("longrope", **phi)["rope_parameters"], [4096]),
    ]
    rows = []
    for head_dim, max_position_embeddings, parameters, lengths in settings:
        for length in lengths:
            config = LlamaConfig(
                hidden_size=4 * head_dim,
                num_attention_heads=4,
                head_dim=head_dim,
                max_position_embeddings=max_position_embeddings,
                rope_parameters=dict(parameters),
            )
            if parameters["rope_type"] == "default":
                inv_freq, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
            else:
                inv_freq, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
            rows.append(
                {
                    "head_dim": head_dim,
                    "max_position_embeddings": max_position_embeddings,
                    "rope_parameters": parameters,
                    "length": length,
                    "inv_freq": [float(f"{value:.9g}") for value in inv_freq.tolist()],  # 9 digits hold a float32
                    "attention_factor": float(factor),
                }
            )
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return {"bytes": file.stat().st_size, "logit": None, "noise": None, "effect": None}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden files.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that receives them")
    out = parser.parse_args().out
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the order of a sum may depend on the number of threads
    table: dict[str, dict[str, Any]] = {}
    for case in CASES:
        shutil.rmtree(out / case.name, ignore_errors=True)
        table[case.name] = write_case(case, out / case.name)
    shutil.rmtree(out / "adapters", ignore_errors=True)
    for base, variants in ADAPTED.items():
        for variant in variants:
            name = f"{base}__{variant}"
            table[f"adapters/{name}"] = write_adapter(out / base, variant, out / "adapters" / name)
    table["rope.json"] = write_rope(out / "rope.json")

    print(f"{'golden':<34}{'KB':>7}{'|logit|':>9}{'noise':>9}{'least effect':>14}")
    for name, row in table.items():
        cells = (f"{row[key]:{form}}" if row[key] is not None else "-" for key, form in FORMATS.items())
        print(
            f"{name:<34}{row['bytes'] / 1000:>7.1f}"
            + "".join(f"{c:>{w}}" for c, w in zip(cells, (9, 9, 14), strict=True))
        )
    print(f"{'total':<34}{sum(row['bytes'] for row in table.values()) / 1000:>7.1f}")


FORMATS = {"logit": ".1f", "noise": ".0e", "effect": ".2f"}

if __name__ == "__main__":
    main()
