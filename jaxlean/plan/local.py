"""`mesh: auto`: the planner's search over the devices that are here."""

from dataclasses import replace
from functools import partial

import jax

from jaxlean.config import RunConfig, build
from jaxlean.errors import RunError
from jaxlean.plan.candidate import rows_per_step
from jaxlean.plan.plan import describe
from jaxlean.plan.search import Row, search
from jaxlean.plan.target import Target
from jaxlean.run import predict
from jaxlean.run.peers import Peers, join
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import split_host
from jaxlean.xla.remat_auto import device_budget


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
    rows = rows if rows is not None else rows_per_step(open_, len(devices))
    length = describe(open_, rows=rows).length
    say(f"mesh: auto, {target.name}: {rows} sequences a step of {length:,} tokens")
    found = list(search(open_, target, length=length, rows=rows, devices=devices, vary_base=False, most=most))
    fitting = [row for row in found if row.status == "fits"]
    for row in found:
        say(_line(row, chosen=bool(fitting) and row is min(fitting, key=_seconds)))
    if not fitting:
        raise RunError("mesh: auto found no mesh that the job fits on", got=found[-1].note if found else None)
    best = min(fitting, key=_seconds).candidate
    assert best is not None
    chosen = best.apply(open_)
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


def _line(row: Row, *, chosen: bool) -> str:
    name = row.candidate.mesh_name if row.candidate is not None else "-"
    if row.step_seconds is None:
        return f"  {name}: {row.note or row.status}"
    assert row.memory is not None
    return f"  {name}: {row.step_seconds:.3f} s a step, {row.memory / 1e9:.2f} GB" + (", chosen" if chosen else "")
