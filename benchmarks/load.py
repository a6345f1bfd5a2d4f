"""How much host memory and time it takes to load a sharded checkpoint, against its size.

    python benchmarks/load.py [--quick] [--out DIR] [--gigabytes G]

Writes a random Llama checkpoint of the given size in bfloat16 shards, loads it in a process of its own and reads that
process's peak resident memory. The baseline (interpreter, jax, transformers' configs) is measured by loading a tiny
checkpoint in the same way and subtracted. `plain read` is the time to read the same files with `cat`, right before.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

_CHILD = """
import sys, time, json
import jax, jaxlean
from jaxlean.cost.memory import peak_memory_bytes
import transformers
start = time.perf_counter()
model = jaxlean.load(sys.argv[1], dtype="bfloat16")
jax.block_until_ready(model.params)
seconds = time.perf_counter() - start
held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
print(json.dumps({"seconds": seconds, "peak": peak_memory_bytes(), "held": held}))
"""


def write_checkpoint(folder: Path, hidden: int, layers: int, vocab: int, layers_per_file: int = 2) -> int:
    """A random Llama in shards; returns the bytes of its tensors."""
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 256, "head_dim": 64, "vocab_size": vocab,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 2048, "rope_theta": 10000.0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)

    def tensor(*shape: int) -> np.ndarray:
        # random bits of small numbers: cheap to make, and no page of zeros that the system could share
        return random.integers(0x3C00, 0x3D00, shape, dtype=np.uint16).view(ml_dtypes.bfloat16)

    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (3 * hidden, hidden), "mlp.up_proj": (3 * hidden, hidden),
        "mlp.down_proj": (hidden, 3 * hidden), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    weight_map: dict[str, str] = {}
    total = 0
    groups = [range(i, min(i + layers_per_file, layers)) for i in range(0, layers, layers_per_file)]
    for number, group in enumerate([None, *groups]):
        if group is None:
            tensors = {"model.embed_tokens.weight": tensor(vocab, hidden), "model.norm.weight": tensor(hidden)}
        else:
            tensors = {f"model.layers.{i}.{name}.weight": tensor(*s) for i in group for name, s in shapes.items()}
        file = f"model-{number + 1:05d}-of-{len(groups) + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def load_in_child(folder: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _CHILD, str(folder)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a 0.2 GB checkpoint, one repeat")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    gigabytes, repeats = (0.2, 1) if args.quick else (args.gigabytes, args.repeats)
    hidden, vocab = (1024, 16_000) if args.quick else (2048, 32_000)
    per_layer = 2 * hidden * hidden * (2 + 0.5 + 9)
    layers = max(round((gigabytes * 1e9 - 2 * vocab * hidden) / per_layer), 1)

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        small, large = Path(scratch, "small"), Path(scratch, "large")
        small.mkdir()
        large.mkdir()
        write_checkpoint(small, 256, 1, 512)
        size = write_checkpoint(large, hidden, layers, vocab)
        for repeat in range(repeats):
            start = time.perf_counter()
            for file in sorted(large.glob("*.safetensors")):
                subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
            read = time.perf_counter() - start
            base, loaded = load_in_child(small), load_in_child(large)
            peak = loaded["peak"] - base["peak"]
            rows.append(
                {"repeat": repeat, "model_bytes": size, "peak_bytes_over_baseline": peak, "ratio": peak / size,
                 "baseline_bytes": base["peak"], "load_seconds": loaded["seconds"], "plain_read_seconds": read}
            )  # fmt: skip
    print(f"{'model GB':>9} {'peak GB over baseline':>22} {'ratio':>6} {'load s':>7} {'plain read s':>13}")
    for row in rows:
        print(
            f"{row['model_bytes'] / 1e9:9.2f} {row['peak_bytes_over_baseline'] / 1e9:22.2f} {row['ratio']:6.2f} "
            f"{row['load_seconds']:7.1f} {row['plain_read_seconds']:13.1f}"
        )
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        result = {
            "command": " ".join(["python", *sys.argv]),
            "hardware": f"{platform.machine()}, {platform.system()}",
            "versions": {name: version(name) for name in ("jax", "flax", "safetensors", "transformers", "numpy")},
            "config": {"hidden_size": hidden, "num_layers": layers, "vocab_size": vocab, "dtype": "bfloat16"},
            "rows": rows,
        }
        (args.out / "load.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
