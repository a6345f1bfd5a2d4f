"""Several processes as one run: `jax.distributed`, started where there is more than one, and nowhere else.

What starts processes tells them where they stand: SLURM, Open MPI, TPU pods and Kubernetes by environment variables or
metadata that jax reads itself; anything else by `distributed.*` of the config. Here is only decided *whether* to ask
jax: in an interactive SLURM session, or on a machine that waits for nobody, it would wait in vain or fail.
"""

import glob
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxlean.config import DistributedSection
from jaxlean.errors import EXIT_PEER_LOST, ConfigError, RunError

# Seconds without a sign of life after which jax itself ends all processes: `jaxlean.run.peers` is faster and says why.
_HEARTBEAT_SECONDS = 100
# What jax waits longer at the start than we do: it ends a process that is alone with a page of C++.
_LONGER_SECONDS = 60


@dataclass(frozen=True)
class Standing:
    """Where this process stands.

    Args:
        index: of this process; 0 writes.
        num: of all.
        host: of process 0, as the others reach it.
        store: jax's key-value store, for what must be known before anything else is; None for a process alone.
    """

    index: int = 0
    num: int = 1
    host: str = ""
    store: Any = None


def initialize(section: DistributedSection) -> Standing:
    """Find the other processes of this run, before jax has looked at its devices; a second call changes nothing.

    Where they do not come in time, it says so and ends the process (`EXIT_PEER_LOST`): nothing else gets jax to stop.

    Raises:
        ConfigError: something started several processes, and jax cannot tell which of them this one is.
        RunError: the address of process 0 cannot be used.
    """
    wanted = _wanted(section, os.environ)
    if wanted is None:
        return _standing() if jax.distributed.is_initialized() else Standing()
    if not jax.distributed.is_initialized():
        # SIGTERM is ours (jaxlean.run.preemption): jax's service for it would take the handler away
        jax.config.update("jax_enable_preemption_service", False)
        seconds = section.start_timeout_seconds
        alarm = threading.Timer(seconds, _give_up, [section])
        alarm.daemon = True
        alarm.start()
        try:
            jax.distributed.initialize(
                **wanted,
                initialization_timeout=seconds + _LONGER_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
        except (RuntimeError, ValueError) as error:  # jax.errors.JaxRuntimeError is the first
            if "coordinator_address should be defined" in str(error):
                return Standing()  # a TPU virtual machine of one worker, say
            raise _apart(section, str(error).strip().splitlines()[0]) from error
        finally:
            alarm.cancel()
    return _standing()


def _apart(section: DistributedSection, got: str) -> RunError:
    return RunError(
        "the processes of the run did not find each other",
        where=section.coordinator_address or "jax.distributed.initialize()",
        got=got,
        wanted="the same command in every process, at about the same time",
        fix="see that all were started, that they reach process 0, and that no other run uses its port; "
        "distributed.start_timeout_seconds is how long they wait",
    )


def _give_up(section: DistributedSection) -> None:
    """In the alarm's thread."""
    got = f"not all came within {section.start_timeout_seconds} seconds"
    print(f"error: {_apart(section, got)}", file=sys.stderr, flush=True)
    os._exit(EXIT_PEER_LOST)


def _standing() -> Standing:
    # jax has no public way to ask without looking at the devices; orbax and others read the same
    from jax._src.distributed import global_state

    if global_state.num_processes == 1:
        return Standing()
    host = str(global_state.coordinator_address).rpartition(":")[0]
    return Standing(global_state.process_id, global_state.num_processes, host.strip("[]"), global_state.client)


def _wanted(section: DistributedSection, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`, as far as they are known; None for a process alone."""
    devices = section.local_device_ids
    if not section.enabled or section.num_processes == 1:
        return None
    if section.coordinator_address is not None:
        # an empty list: all devices there are, and jax asks no scheduler
        return {
            "coordinator_address": section.coordinator_address,
            "num_processes": section.num_processes,
            "process_id": section.process_id,
            "local_device_ids": devices or [],
        }
    for launcher in (_open_mpi, _slurm, _tpu, _kubernetes):  # as jax: mpirun may have been started by srun
        found = launcher(environment)
        if found is not None:
            return found if devices is None else found | {"local_device_ids": devices}
    return None


def _slurm(environment: Mapping[str, str]) -> dict[str, Any] | None:
    # What jax asks for. A batch script and an interactive shell have some of these too, with the numbers of the job;
    # SLURM_STEP_NUM_TASKS says how many processes were started beside this one.
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(name in environment for name in names):
        return None
    tasks = [
        int(environment.get(name, environment["SLURM_NTASKS"])) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
    ]
    if min(tasks) == 1:
        return None
    on_nodes = re.findall(r"(\d+)(?:\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    # Left to itself jax takes one device for each process, also where the process has the whole machine.
    return {"local_device_ids": []} if on_nodes and set(on_nodes) == {"1"} else {}


def _open_mpi(environment: Mapping[str, str]) -> dict[str, Any] | None:
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) == 1:
        return None
    found: dict[str, Any] = {"local_device_ids": []} if environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" else {}
    if "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5
        if importlib.util.find_spec("mpi4py") is None:
            raise ConfigError(
                "Open MPI 5 started several processes, and jax finds them by mpi4py only",
                where="distributed",
                fix="pip install mpi4py; or set distributed.coordinator_address, num_processes and process_id",
            )
        found["cluster_detection_method"] = "mpi4py"
    return found


def _tpu(environment: Mapping[str, str]) -> dict[str, Any] | None:
    if "tpu" not in environment.get("JAX_PLATFORMS", "tpu") or importlib.util.find_spec("libtpu") is None:
        return None
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in workers or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return {}
    if workers or "TPU_SKIP_MDS_QUERY" in environment:
        return None
    # A Compute Engine machine with TPU chips: only its metadata server knows of the others, and jax asks it.
    return {} if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") else None


def _kubernetes(environment: Mapping[str, str]) -> dict[str, Any] | None:
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return None  # not a pod of an indexed job, which alone knows its number
    if importlib.util.find_spec("kubernetes") is not None:
        return {}
    if environment["JOB_COMPLETION_INDEX"] == "0":
        return None  # perhaps the only one
    raise ConfigError(
        "a pod of several, and jax finds the others by the kubernetes package only",
        where="distributed",
        got=f"JOB_COMPLETION_INDEX={environment['JOB_COMPLETION_INDEX']}",
        fix="pip install 'jax[k8s]'; or set distributed.coordinator_address, num_processes and process_id",
    )
