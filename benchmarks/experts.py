"""What a mixture's experts cost on a TPU that is not here: XLA's ragged product against a loop over blocks.

    pip install -e '.[plan]'
    JAX_PLATFORMS=cpu python benchmarks/experts.py [--quick] [--out DIR] [--target v5e:1x1]

Compiles the linear layers of experts with adapters (the base frozen, in bfloat16), forward and backward, and reads the
compiler's own cycles, its loops counted. They leave out XLA's kernels, of which `uncounted_ms` is the time that their
products would take at the TPU's peak.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from report import publish

from jaxlean.models.grouped import grouped_linear
from jaxlean.plan.compiled import cycle_seconds
from jaxlean.plan.target import Target, devices_of, parse
from jaxlean.platform import written_for
from jaxlean.xla import hlo

EXPERTS, DIM_IN, DIM_OUT, RANK = 64, 2048, 1024, 16
COLUMNS = {"rows": ",d", "how": "", "milliseconds": ".1f", "uncounted_ms": ".1f", "temporary_gb": ".2f"}


def compiled(target: Target, rows: int, how: str) -> dict[str, Any]:
    """One way, written for TPUs or for anything else."""
    devices = devices_of(target)
    where = jax.sharding.SingleDeviceSharding(devices[0])

    def shape(*dims: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=where)

    adapter = {
        "lora_a": shape(EXPERTS, DIM_IN, RANK, dtype=jnp.float32),
        "lora_b": shape(EXPERTS, RANK, DIM_OUT, dtype=jnp.float32),
        "lora_scale": shape(EXPERTS, dtype=jnp.float32),
    }

    def both_ways(x: Any, adapter: Any, kernel: Any, sizes: Any, grad: Any) -> Any:
        y, pull = jax.vjp(lambda x, own: grouped_linear(x, {**own, "kernel": kernel}, sizes), x, adapter)
        return y, pull(grad)

    kernel, sizes = shape(EXPERTS, DIM_IN, DIM_OUT), shape(EXPERTS, dtype=jnp.int32)
    with written_for("tpu" if how == "ragged" else "gpu"):
        lowered = jax.jit(both_ways).lower(shape(rows, DIM_IN), adapter, kernel, sizes, shape(rows, DIM_OUT))
        program = lowered.compile()
    cycle, peak = cycle_seconds(target, devices), target.device.flops_per_second("bfloat16")
    cycles = hlo.read(program.as_text() or "").cycles
    memory = program.memory_analysis()
    if cycle is None or peak is None or cycles is None or memory is None:
        raise SystemExit(f"--target {target.name}: no TPU, or one whose peak the table of hardware does not have")
    products = 2 * 2.0 * rows * DIM_IN * DIM_OUT  # forward, and back to the rows
    return {
        "rows": rows,
        "how": how,
        "milliseconds": 1e3 * cycles * cycle,
        "uncounted_ms": 1e3 * products / peak if how == "ragged" else 0.0,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one number of rows")
    parser.add_argument("--target", default="v5e:1x1", help="a TPU, as jaxlean plan has it")
    parser.add_argument("--out", type=Path, help="folder for experts.json")
    args = parser.parse_args()
    target = parse(args.target)
    sizes = (16_384,) if args.quick else (16_384, 65_536)
    rows = [compiled(target, size, how) for size in sizes for how in ("blocks", "ragged")]
    config = {"target": target.name, "experts": EXPERTS, "in": DIM_IN, "out": DIM_OUT, "rank": RANK}
    publish("experts", config, rows, COLUMNS, args.out)


if __name__ == "__main__":
    main()
