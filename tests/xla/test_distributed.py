import importlib.util
import threading

import jax
import pytest

from jaxlean.config import DistributedSection
from jaxlean.errors import EXIT_PEER_LOST, ConfigError, RunError
from jaxlean.xla import distributed
from jaxlean.xla.distributed import Standing, initialize

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
WORKERS = {"TPU_WORKER_HOSTNAMES": "a,b"}


@pytest.fixture
def there(monkeypatch):
    """`there("libtpu")`: the packages that can be imported, of those that are looked for; no TPU chip."""
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])

    def only(*names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)

    only()
    return only


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # an interactive shell inside an allocation of two
        {name: value for name, value in SLURM.items() if "STEP" not in name},  # a batch script, without srun
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod of no indexed job
        POD,  # no package to ask with: perhaps the only pod
        WORKERS,  # no libtpu
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_a_process_alone_asks_nobody(there, environment):
    assert distributed._wanted(DistributedSection(), environment) is None


@pytest.mark.parametrize(
    ("packages", "environment", "wanted"),
    [
        ((), SLURM, {"local_device_ids": []}),  # one task a machine: all its devices
        ((), SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, {}),  # else jax gives each its own
        ((), SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1,2"}, {}),
        ((), OPEN_MPI, {}),
        ((), OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, {"local_device_ids": []}),
        (("mpi4py",), {"OMPI_COMM_WORLD_SIZE": "2"}, {"cluster_detection_method": "mpi4py"}),
        (("libtpu",), WORKERS, {}),
        (("libtpu",), {"MEGASCALE_NUM_SLICES": "2"}, {}),
        (("kubernetes",), POD, {}),
    ],
)
def test_what_started_several_is_left_to_jax(there, packages, environment, wanted):
    there(*packages)
    assert distributed._wanted(DistributedSection(), environment) == wanted


def test_a_tpu_machine_has_jax_ask_the_metadata_server(there, monkeypatch):
    there("libtpu")
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    assert distributed._wanted(DistributedSection(), {}) == {}
    assert distributed._wanted(DistributedSection(), {"JAX_PLATFORMS": "cpu"}) is None


def test_the_config_goes_before_what_is_detected(there):
    told = DistributedSection(coordinator_address="first:1234", num_processes=4, process_id=3)
    assert distributed._wanted(told, SLURM) == {
        "coordinator_address": "first:1234",
        "num_processes": 4,
        "process_id": 3,
        "local_device_ids": [],
    }
    assert distributed._wanted(DistributedSection(local_device_ids=[2, 3]), SLURM) == {"local_device_ids": [2, 3]}
    assert distributed._wanted(DistributedSection(enabled=False), SLURM) is None
    only = DistributedSection(coordinator_address="first:1234", num_processes=1, process_id=0)
    assert distributed._wanted(only, {}) is None


@pytest.mark.parametrize(
    ("environment", "words"),
    [(POD | {"JOB_COMPLETION_INDEX": "1"}, "jax[k8s]"), ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpi4py")],
)
def test_several_that_jax_cannot_tell_apart(there, environment, words):
    with pytest.raises(ConfigError, match=r"distributed\.coordinator_address") as raised:
        distributed._wanted(DistributedSection(), environment)
    assert words in str(raised.value)


def test_alone_jax_is_not_touched(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: pytest.fail("called"))
    assert initialize(DistributedSection(enabled=False)) == Standing(0, 1)


def test_others_that_do_not_come(monkeypatch, capsys):
    ended = threading.Event()

    def never(**arguments):
        assert ended.wait(10)

    codes = []
    monkeypatch.setattr(distributed.os, "_exit", lambda code: [codes.append(code), ended.set()])
    monkeypatch.setattr(jax.distributed, "initialize", never)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    initialize(
        DistributedSection(coordinator_address="first:1234", num_processes=2, process_id=1, start_timeout_seconds=1)
    )
    assert codes == [EXIT_PEER_LOST]
    told = capsys.readouterr().err
    assert told.startswith("error: the processes of the run did not find each other\n  where:  first:1234\n")
    assert "not all came within 1 seconds" in told


def test_an_address_that_cannot_be_used(monkeypatch):
    def never(**arguments):
        assert arguments["initialization_timeout"] > 5, "jax would end the process before we can say why"
        raise RuntimeError("UNKNOWN: Address already in use\nand a page more")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    section = DistributedSection(
        coordinator_address="first:1234", num_processes=2, process_id=1, start_timeout_seconds=5
    )
    with pytest.raises(RunError) as raised:
        initialize(section)
    for words in ("did not find each other", "first:1234", "Address already in use", "start_timeout_seconds"):
        assert words in str(raised.value)
    assert "a page more" not in str(raised.value)


def test_a_tpu_machine_of_one_worker_is_alone(monkeypatch):
    def nobody(**arguments):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(distributed, "_wanted", lambda section, environment: {})
    assert initialize(DistributedSection()) == Standing()
