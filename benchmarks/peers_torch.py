"""The torch side of `peers.py`: transformers + PEFT on the same weights, adapter and batches."""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path, help="folder that peers.py prepared: base/, adapter/, batches.npz, job.json")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing of every layer")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument(
        "--adapter-dtype", choices=("float32", "compute"), default="float32", help="float32: PEFT's default"
    )
    parser.add_argument("--steps", type=int, help="only the first of the job's")
    args = parser.parse_args()

    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = json.loads((args.job / "job.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(job["threads"])
    dtype = getattr(torch, args.dtype)
    base: Any = AutoModelForCausalLM.from_pretrained(args.job / "base", dtype=dtype, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(
        base.to(device), args.job / "adapter", is_trainable=True, autocast_adapter_dtype=args.adapter_dtype == "float32"
    )
    model.train()
    model.config.use_cache = False
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=job["learning_rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=device == "cuda"
    )
    forward = torch.compile(model) if args.compile else model
    tokens = torch.from_numpy(np.load(args.job / "batches.npz")["tokens"]).long()

    losses, ends = [], []
    for number in range(args.steps or job["steps"]):
        rows = tokens[number].to(device)
        # every row is full: no mask is needed, and without one SDPA takes its fast causal path
        loss = forward(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())  # waits for the device
        ends.append(time.perf_counter())
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        name = torch.cuda.get_device_name()
    else:
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
        name = "cpu"
    print(json.dumps({
        "losses": losses, "ends": [end - STARTED for end in ends], "peak_memory_bytes": peak, "device": name,
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
