"""`mesh: auto`: the planner's search over the devices that are here, and a few steps of those in front."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from jaxlean.config import RunConfig, build
from jaxlean.errors import RunError
from jaxlean.plan.candidate import rows_per_step
from jaxlean.plan.plan import describe
from jaxlean.plan.search import Row, search
from jaxlean.plan.target import Target
from jaxlean.plan.trial import trial_seconds
from jaxlean.run import predict
from jaxlean.run.job import resolved
from jaxlean.run.peers import Peers, join
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import split_host
from jaxlean.xla.remat_auto import device_budget

# What may be slower than the best by estimate, and still be the fastest: worth a few steps.
NEAR = 1.15


def choose_mesh(config: RunConfig, *, rows: int | None = None, most: int = 4) -> RunConfig:
    """The config with a mesh for these devices, and the microbatch and (where none is set) the policy that go with it.

    Args:
        config: with `mesh: auto`; an axis that it sets as well stays as it is.
        rows: sequences of a step; default: what `per_device_train_batch_size` and the number of devices make them.
        most: meshes to compile.

    Raises:
        RunError: nothing fits.
    """
    with join(config.distributed) as peers:
        return _choose(config, rows, most, peers)


def _choose(config: RunConfig, rows: int | None, most: int, peers: Peers) -> RunConfig:
    split_host(config.mesh.host_devices)
    use_cache(config.compilation_cache)
    say = partial(peers.console().print, highlight=False, soft_wrap=True)
    devices = jax.devices()
    open_ = config.model_copy(deep=True)
    open_.mesh.auto = False
    if len(devices) == 1:
        return open_
    target = here(config)
    budget = config.train.memory_budget
    if budget is not None or target.capacity is None:
        target = replace(target, limit=budget if budget is not None else device_budget(devices))
    open_ = resolved(open_)
    rows = rows if rows is not None else rows_per_step(open_, len(devices))
    length = describe(open_, rows=rows).length
    say(f"mesh: auto, {target.name}: {rows} sequences a step of {length:,} tokens")
    found = list(search(open_, target, length=length, rows=rows, devices=devices, vary_base=False, most=most))
    fitting = sorted((row for row in found if row.status == "fits"), key=_seconds)
    if not fitting:
        for row in found:
            say(_line(row))
        raise RunError("mesh: auto found no mesh that the job fits on", got=found[-1].note if found else None)
    # all processes run the same ones, in the same order
    told = peers.share([row.as_dict() for row in fitting if _seconds(row) <= NEAR * _seconds(fitting[0])])
    near = [Row.from_dict(values) for values in told]
    took = peers.share(_run(open_, near, devices, length, peers))
    best = min(range(len(near)), key=took.__getitem__)
    for row in found:
        ran = took[near.index(row)] if row in near else None
        say(_line(row, ran) + (", chosen" if row == near[best] else ""))
    candidate = near[best].candidate
    assert candidate is not None
    chosen = candidate.apply(open_)
    # no choice of this search: written into the run's config they would bind the next start
    chosen.model.dtype, chosen.model.quantization = config.model.dtype, config.model.quantization
    # what each process found is the same where their machines are
    return build(peers.share(chosen.model_dump(mode="json")))


def here(config: RunConfig) -> Target:
    """The devices of this process's jax as a target."""
    found = predict.here(jax.devices(), config.cost.hardware)
    return Target(f"{found.device.target or found.device.name}:{found.num_devices}", found.device, (found.num_devices,))


def _seconds(row: Row) -> float:
    return row.step_seconds if row.step_seconds is not None else float("inf")


def _run(config: RunConfig, rows: Sequence[Row], devices: Sequence[Any], length: int, peers: Peers) -> list[float]:
    """Seconds of a step of each, run where there is a choice; infinite where it cannot be."""
    if len(rows) == 1:
        return [_seconds(rows[0])]
    found = []
    for row in rows:
        assert row.candidate is not None
        try:
            found.append(trial_seconds(config, row.candidate, devices, length=length, together=peers.barrier))
        except jax.errors.JaxRuntimeError:  # no room after all, say: the others are left
            found.append(float("inf"))
    return found if min(found) < float("inf") else [_seconds(row) for row in rows]


def _line(row: Row, ran: float | None = None) -> str:
    name = row.candidate.mesh_name if row.candidate is not None else "-"
    if row.step_seconds is None:
        return f"  {name}: {row.note or row.status}"
    assert row.memory is not None
    line = f"  {name}: {row.step_seconds:.3f} s a step, {row.memory / 1e9:.2f} GB"
    if ran is None or ran == row.step_seconds:
        return line
    return f"{line}; run: {ran:.3f} s" if ran < float("inf") else f"{line}; run: failed"
