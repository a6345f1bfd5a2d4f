"""Checkpoints: donation, damage of every file, kill -9, a full disk, another run's tree."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlean.errors import RunError
from jaxlean.run import checkpoint
from jaxlean.run.checkpoint import Checkpoints


def tree(scale: float):
    """Parameters, an optax state, a bfloat16 array, a random key, a counter."""
    params = {"layers": {"query": {"lora_a": jnp.full((2, 8, 4), scale), "lora_b": jnp.arange(24.0).reshape(2, 4, 3)}}}
    return {
        "params": params,
        "optimizer": optax.adamw(1e-3).init(params),
        "half": jnp.full((5,), scale, jnp.bfloat16),
        "key": jnp.array([1, 2], jnp.uint32),
        "count": jnp.array(int(scale), jnp.int32),
        "number": int(scale),
    }


def like(arrays):
    """The same tree without values."""
    return jax.tree.map(lambda x: x if isinstance(x, int) else jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert type(a) is type(b)
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(step, tree(step), {"row": step})
    checkpoints.close()
    return folder


@pytest.fixture
def copy(two_steps, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_steps, folder)
    return folder


def relative_files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_what_was_saved_comes_back_with_types_and_structure(copy):
    checkpoints = Checkpoints(copy, keep=2)
    saved = checkpoints.latest(like(tree(0)))
    assert saved.step == 2
    assert saved.state == {"row": 2}
    assert_same(saved.arrays, tree(2))
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.nbytes(2) == sum((copy / "2" / name).stat().st_size for name in relative_files(copy / "2"))
    checkpoints.close()


def test_none_in_an_empty_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "checkpoints", keep=1)
    assert checkpoints.latest({"a": jnp.zeros(2)}) is None
    checkpoints.close()


def test_numpy_and_a_bare_array_and_state_are_copied(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    array, state = np.arange(1000), {"rows": [1]}
    checkpoints.save(1, array, state)
    array[:] = -1
    state["rows"].append(2)
    saved = checkpoints.latest(np.zeros(1000, array.dtype))
    assert isinstance(saved.arrays, np.ndarray)
    assert saved.state == {"rows": [1]}
    np.testing.assert_array_equal(saved.arrays, np.arange(1000))
    checkpoints.close()


@pytest.mark.parametrize("axes", [None, (), ("data", "fsdp")])
def test_buffers_may_be_donated_as_soon_as_save_returns(tmp_path, monkeypatch, axes):
    # The writer is held back until the donated buffers were overwritten many times.
    write = checkpoint._write_arrays

    def late(folder, host):
        time.sleep(0.2)
        write(folder, host)

    monkeypatch.setattr(checkpoint, "_write_arrays", late)
    where = jax.devices()[0] if axes is None else NamedSharding(mesh(), PartitionSpec(*axes))
    arrays = jax.device_put({"a": jnp.zeros((300, 300)), "b": jnp.zeros((8, 2), jnp.bfloat16)}, where)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    donated = arrays = step(arrays)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, arrays, {})
    for _ in range(20):
        arrays = step(arrays)
    jax.block_until_ready(arrays)
    assert donated["a"].is_deleted()
    saved = checkpoints.latest(arrays)
    for leaf in jax.tree.leaves(saved.arrays):
        assert (np.asarray(leaf, np.float32) == 1).all()
    checkpoints.close()


def test_host_copies_share_no_memory():
    array = jnp.arange(4096.0)
    host = checkpoint.gather(array)
    assert not np.shares_memory(host, np.asarray(array))


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        checkpoints.save(step, {"a": jnp.ones(3) * step}, {}, wait=True)
    assert checkpoints.steps() == [3, 10]
    assert sorted(os.listdir(tmp_path)) == ["10", "3"]
    checkpoints.close()


def test_a_step_already_on_disk_is_left_alone(copy):
    before = (copy / "2" / "complete.json").stat().st_mtime_ns
    checkpoints = Checkpoints(copy, keep=2)
    checkpoints.save(2, tree(2), {"row": 2}, wait=True)
    checkpoints.close()
    assert (copy / "2" / "complete.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "removed"])
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(copy, caplog, damage):
    names = relative_files(copy / "2")
    assert len(names) >= 5
    assert "complete.json" in names
    arrays = like(tree(0))
    checkpoints = Checkpoints(copy, keep=2)
    for name in names:
        file = copy / "2" / name
        whole = file.read_bytes()
        if not whole:
            continue
        if damage == "removed":
            file.unlink()
        else:
            middle = len(whole) // 2
            flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
            file.write_bytes({"cut": whole[:-1], "emptied": b"", "flipped": flipped}[damage])
        caplog.clear()
        saved = checkpoints.latest(arrays)
        assert saved is not None, name
        assert (saved.step, saved.state) == (1, {"row": 1}), name
        for words in (str(copy / "2"), "damaged", Path(name).name):
            assert words in caplog.text
        file.write_bytes(whole)
    assert checkpoints.latest(arrays).step == 2
    checkpoints.close()


def test_all_damaged_is_none_and_says_so(copy, caplog):
    for step in ("1", "2"):
        (copy / step / "complete.json").write_text("{}")
    checkpoints = Checkpoints(copy, keep=2)
    assert checkpoints.latest(like(tree(0))) is None
    assert "nothing to go on from" in caplog.text
    checkpoints.close()


def test_going_on_from_before_a_damaged_one_replaces_it(copy):
    (copy / "2" / "complete.json").unlink()
    checkpoints = Checkpoints(copy, keep=1)
    assert checkpoints.latest(like(tree(0))).step == 1
    checkpoints.save(2, tree(5), {"row": 5}, wait=True)
    saved = checkpoints.latest(like(tree(0)))
    assert saved.step == 2
    assert saved.state == {"row": 5}
    assert_same(saved.arrays, tree(5))
    checkpoints.close()


def test_a_damaged_one_ahead_does_not_push_out_the_good_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(30, {"a": jnp.ones(3)}, {}, wait=True)
    (tmp_path / "30" / "complete.json").unlink()
    assert checkpoints.latest({"a": jnp.zeros(3)}) is None
    checkpoints.save(20, {"a": jnp.ones(3)}, {}, wait=True)
    assert checkpoints.steps() == [20]
    checkpoints.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"half": jnp.zeros((6,), jnp.bfloat16)}, ("half", "bfloat16 [5]", "bfloat16 [6]")),
        (lambda t: t | {"half": jnp.zeros((5,), jnp.float32)}, ("half", "bfloat16 [5]", "float32 [5]")),
        (lambda t: t | {"more": jnp.zeros(1)}, ("lacks an array", "more")),
        (lambda t: {k: v for k, v in t.items() if k != "key"}, ("this run lacks", "key")),
    ],
)
def test_a_checkpoint_of_another_run_is_an_error_not_a_fresh_start(copy, change, words):
    checkpoints = Checkpoints(copy, keep=2)
    with pytest.raises(RunError) as raised:
        checkpoints.latest(change(tree(0)))
    for word in (*words, str(copy / "2"), "--overwrite"):
        assert word in str(raised.value)
    checkpoints.close()


def test_leftovers_of_a_killed_write_are_removed_and_never_read(copy):
    shutil.move(copy / "2", copy / ".writing-2")
    checkpoints = Checkpoints(copy, keep=2)
    assert os.listdir(copy) == ["1"]
    assert checkpoints.latest(like(tree(0))).step == 1
    checkpoints.close()


WORKER = """
import sys, jax.numpy as jnp
from jaxlean.run.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
saved = checkpoints.latest({"a": jnp.zeros((64, 257)), "n": 0})
first = 1 if saved is None else saved.step + 1
if saved is not None:
    assert saved.state == {"row": saved.step} and saved.arrays["n"] == saved.step
    assert (saved.arrays["a"] == saved.step).all()
for step in range(first, 10**6):
    arrays = {"a": jnp.full((64, 257), float(step)), "n": step}
    checkpoints.save(step, arrays, {"row": step}, wait=step == first)
    if step == first:
        print("go", first, flush=True)
"""


def test_killed_at_any_moment_the_newest_is_whole(tmp_path):
    folder, rng, last = tmp_path / "checkpoints", np.random.default_rng(0), 0
    for _ in range(4):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        # Before it says "go" the worker has checked what it restored and written one more.
        word, first = (worker.stdout.readline() or "died 0").split()
        assert word == "go"
        assert int(first) > last
        time.sleep(rng.uniform(0.0, 0.4))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        last = int(first)
    checkpoints = Checkpoints(folder, keep=2)
    saved = checkpoints.latest({"a": jnp.zeros((64, 257)), "n": 0})
    assert saved is not None
    assert saved.step >= last
    assert (saved.arrays["a"] == saved.step).all()
    assert saved.arrays["n"] == saved.step
    checkpoints.close()


def full_disk(folder, host):
    raise OSError(28, "No space left on device")


def full_disk_in_tensorstore(folder, host):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing ... [OS error 28: No space left on device]")


@pytest.mark.parametrize("fail", [full_disk, full_disk_in_tensorstore])
def test_a_full_disk_is_a_run_error_at_the_next_call(copy, monkeypatch, fail):
    checkpoints = Checkpoints(copy, keep=2)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_write_arrays", fail)
        checkpoints.save(3, tree(3), {})
        with pytest.raises(RunError) as raised:
            checkpoints.save(4, tree(4), {})
    for word in ("no disk space", str(copy), "bytes free", "--resume"):
        assert word in str(raised.value)
    # Nothing half-written stays, what was there still counts, and with room again it goes on.
    assert sorted(os.listdir(copy)) == ["1", "2"]
    checkpoints.save(5, tree(5), {}, wait=True)
    assert checkpoints.steps() == [2, 5]
    checkpoints.close()


def test_a_wait_cut_off_by_a_signal_is_taken_up_again(tmp_path, monkeypatch):
    write, writes = checkpoint._write_arrays, []

    def late(folder, host):
        writes.append(folder)
        time.sleep(0.3)
        write(folder, host)

    def interrupt(number, frame):
        raise InterruptedError

    monkeypatch.setattr(checkpoint, "_write_arrays", late)
    checkpoints = Checkpoints(tmp_path, keep=1)
    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(InterruptedError):
            checkpoints.save(1, {"a": jnp.ones(3)}, {}, wait=True)
    finally:
        signal.signal(signal.SIGALRM, old)
    checkpoints.save(1, {"a": jnp.ones(3)}, {}, wait=True)
    assert checkpoints.steps() == [1]
    assert len(writes) == 1
    checkpoints.close()


def test_a_failed_write_is_raised_on_close(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_write_arrays", full_disk)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"a": jnp.ones(3)}, {})
    with pytest.raises(RunError, match="no disk space"):
        checkpoints.close()


def test_another_failure_keeps_its_own_kind(tmp_path, monkeypatch):
    def bug(folder, host):
        raise KeyError("a bug of ours")

    monkeypatch.setattr(checkpoint, "_write_arrays", bug)
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(KeyError, match="a bug of ours"):
        checkpoints.save(1, {"a": jnp.ones(3)}, {}, wait=True)
    checkpoints.close()


def test_a_folder_that_cannot_be_made_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)


def test_a_disk_that_really_is_full(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        checkpoints = Checkpoints(disk / "checkpoints", keep=1)
        checkpoints.save(1, {"a": jnp.ones(3)}, {}, wait=True)
        noise = np.random.default_rng(0).random(1 << 17)  # 1 MiB that does not compress
        with pytest.raises(RunError, match="about 1,048,576 bytes"):
            checkpoints.save(2, {"a": noise}, {}, wait=True)
        assert caplog.text == ""  # a sentence, not orbax's tracebacks
        assert checkpoints.latest({"a": jnp.zeros(3)}).step == 1
        checkpoints.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_may_not_grow(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"a": jnp.ones(3)}, {}, wait=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        noise = np.random.default_rng(0).random(1 << 17)  # 1 MiB that does not compress
        with pytest.raises(RunError, match="a checkpoint is larger than a file may be"):
            checkpoints.save(2, {"a": noise}, {}, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest({"a": jnp.zeros(3)}).step == 1
    checkpoints.close()


def mesh():
    return Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_sharded_arrays_come_back_on_the_shardings_asked_for(tmp_path):
    values = np.arange(32.0, dtype=np.float32).reshape(8, 4)

    def put(*axes):
        return jax.device_put(values, NamedSharding(mesh(), PartitionSpec(*axes)))

    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"split": put("fsdp"), "whole": put(), "one": jnp.array(values)}, {})
    other = NamedSharding(mesh(), PartitionSpec("data", "fsdp"))
    like = {"split": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=other), "whole": put(), "one": put("data")}
    arrays = checkpoints.latest(like).arrays
    for name, leaf in like.items():
        assert arrays[name].sharding == leaf.sharding
        np.testing.assert_array_equal(arrays[name], values)
    checkpoints.close()


def test_what_tensorstore_says_after_an_error_is_not_shown(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: shown.append(str(told.exc_value)))
    ours = sys.unraisablehook
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"a": jnp.ones(3)}, {}, wait=True)
    assert sys.unraisablehook is ours
    with monkeypatch.context() as patched, pytest.raises(RunError, match="no disk space"):
        patched.setattr(checkpoint, "_orbax", lambda: full_disk(None, None))
        checkpoints.save(2, {"a": jnp.ones(3)}, {}, wait=True)
    for error in (RuntimeError("Event loop is closed"), RuntimeError("a bug"), ValueError("another")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert shown == ["a bug", "another"]
    checkpoints.close()
