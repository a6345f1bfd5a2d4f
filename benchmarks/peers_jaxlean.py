"""The jaxlean side of `peers.py`: the step that a run would build, on the same weights, adapter and batches."""

import argparse
import json
import time
from pathlib import Path

STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path, help="folder that peers.py prepared: base/, adapter/, batches.npz, job.json")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--remat", default="none", help="a policy, or a JSON list of the activations to keep")
    parser.add_argument("--host-devices", type=int, default=1, help="CPU only: mesh.host_devices")
    parser.add_argument("--steps", type=int, help="only the first of the job's")
    args = parser.parse_args()

    import jax
    import numpy as np

    from jaxlean import tree
    from jaxlean.adapt import lora
    from jaxlean.config import TrainSection
    from jaxlean.cost.memory import give_back, peak_memory_bytes
    from jaxlean.hub.adapter import read_adapter
    from jaxlean.hub.load import load
    from jaxlean.models.cpu import hold
    from jaxlean.models.decoder import ACTIVATIONS
    from jaxlean.train.loss import chunk_budget
    from jaxlean.train.objective import objective
    from jaxlean.train.optimizer import optimizer
    from jaxlean.train.step import init_state, make_step
    from jaxlean.xla.mesh import batch_sharding, make_mesh, place, replicated, split_host
    from jaxlean.xla.remat import Policy, scan_layers
    from jaxlean.xla.remat_auto import choose, device_budget

    split_host(args.host_devices)
    job = json.loads((args.job / "job.json").read_text())
    mesh = make_mesh()
    where = place(mesh)
    model = load(args.job / "base", args.dtype, mesh)
    adapter = tree.flatten(read_adapter(args.job / "adapter", model.names, model.params))
    params = tree.unflatten({**tree.flatten(model.params), **adapter})
    params = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, tuple(x.shape))), params)
    model = model.with_params(params)
    trainable, frozen = tree.split(params, lora.is_adapter)
    frozen = hold(frozen)
    settings = TrainSection(learning_rate=job["learning_rate"], lr_scheduler_type="constant", warmup_ratio=0.0)
    transform = optimizer(settings, job["steps"], trainable)
    state = jax.device_put(init_state(trainable, transform), replicated(mesh))
    graph, config, backend = model.graph, model.config, model.attention
    del model, params, trainable, adapter

    budget = chunk_budget("auto", mesh.size, config.vocab_size)
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def build(policy: Policy) -> jax.stages.Wrapped:
        scan = scan_layers(policy, ACTIVATIONS)
        return make_step(objective(graph, config, logits_bytes=budget, scan=scan), transform, shardings=shardings)

    tokens = np.load(args.job / "batches.npz")["tokens"]
    steps, rows, length = tokens.shape
    sharding = batch_sharding(mesh, leading=1)

    def batch(number: int) -> dict[str, jax.Array]:
        numbers = {
            "tokens": tokens[number],
            "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
            "segments": np.ones((rows, length), np.int32),
            "loss_mask": np.broadcast_to(np.arange(length) > 0, (rows, length)),
        }
        return {name: jax.device_put(value[None], sharding) for name, value in numbers.items()}

    policy = json.loads(args.remat) if args.remat.startswith("[") else args.remat
    if policy == "auto":
        chosen = choose(build, (state, frozen, batch(0)), device_budget(), ACTIVATIONS, shards=mesh.size)
        policy, compiled = chosen.policy, chosen.compiled
    else:
        compiled = build(policy).lower(state, frozen, batch(0)).compile()
    give_back()
    losses, ends = [], []
    for number in range(args.steps or steps):
        state, measured = compiled(state, frozen, batch(number))
        losses.append(float(measured.loss))  # waits for the device
        ends.append(time.perf_counter())
    analysis = compiled.memory_analysis()
    print(json.dumps({
        "losses": losses, "ends": [end - STARTED for end in ends], "peak_memory_bytes": peak_memory_bytes(),
        "device": mesh.devices.flat[0].device_kind, "remat": policy, "attention": backend, "num_devices": mesh.size,
        "temp_bytes": analysis.temp_size_in_bytes if analysis is not None else None,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
