"""Snapshots: what is handed over is what is read, a few stay, and nothing that goes wrong holds training up."""

import errno
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import tree
from jaxlean.run.lease import Leases
from jaxlean.run.manifest import Damaged, Unreadable, write_manifest
from jaxlean.run.snapshots import (
    LEASE,
    Origin,
    Snapshots,
    read_origin,
    read_snapshot,
    snapshot_steps,
    write_origin,
)


def params(value: float = 1.0) -> tree.Tree:
    leaves = jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + value
    return {"layers": {"query": {"lora_a": leaves, "lora_b": leaves.astype(jnp.bfloat16)}}, "head": jnp.ones(3) * value}


@pytest.fixture
def opened(tmp_path):
    """`opened(...)`: snapshots whose `scored` is a set that the test fills."""
    every = []

    def make(**how) -> tuple[Snapshots, set[int]]:
        done: set[int] = set()
        snapshots = Snapshots(tmp_path / "snapshots", **{"waiting": 2, "scored": done.__contains__, **how})
        every.append(snapshots)
        return snapshots, done

    yield make
    for snapshots in every:
        snapshots.close()


@pytest.mark.parametrize("on_device", [True, False])
def test_what_is_handed_over_is_read(on_device, opened, tmp_path):
    snapshots, _ = opened(copy_on_device=on_device)
    held = params(0.1)
    snapshots.hand_over(120, held, whole=True)
    for leaf in jax.tree.leaves(held):
        leaf.delete()  # as a step does that is given the buffers
    snapshots.settle()
    assert snapshot_steps(tmp_path / "snapshots") == [120]
    content, arrays = read_snapshot(tmp_path / "snapshots", "120")
    jax.tree.map(np.testing.assert_array_equal, arrays, jax.device_get(params(0.1)))
    assert arrays["layers"]["query"]["lora_b"].dtype == jnp.bfloat16
    assert (content["step"], content["whole"], content["token"]) == (120, True, snapshots.token(120))
    assert {file.name for file in (tmp_path / "snapshots" / "120").iterdir()} == {"arrays.safetensors", "complete.json"}


def test_one_that_was_put_there_from_elsewhere_is_known(opened, tmp_path):
    snapshots, _ = opened()
    for step in (10, 20):
        snapshots.hand_over(step, params())
        snapshots.settle()
    folder = tmp_path / "snapshots"
    assert not snapshots.is_foreign(10)
    shutil.copy(folder / "20" / "complete.json", folder / "10")
    assert snapshots.is_foreign(10)
    assert not snapshots.is_foreign(20)
    assert not snapshots.is_foreign(30), "there is none"


def test_of_those_that_wait_the_newest_stay(opened, tmp_path):
    best = 30
    snapshots, done = opened(best=lambda steps: best if best in steps else None)
    snapshots.hand_over(0, params(), whole=True)
    for step in (10, 20, 30, 40):
        snapshots.hand_over(step, params())
        snapshots.settle()
    assert snapshots.waiting() == [0, 30, 40]  # the first is not left out
    assert snapshots.skipped == 2
    assert snapshots.token(10) is None
    begun = Leases().take(tmp_path / "snapshots" / "30" / LEASE)
    for step in (50, 60):
        snapshots.hand_over(step, params())
        snapshots.settle()
    assert snapshots.waiting() == [0, 30, 50, 60]  # somebody works on 30
    assert begun.held()
    begun.release()
    done.update((30, 50))
    snapshots.make_room()
    snapshots.settle()
    assert snapshot_steps(tmp_path / "snapshots") == [0, 30, 60]
    assert snapshots.skipped == 3
    done.add(60)
    best = 60
    snapshots.make_room()
    snapshots.settle()
    assert snapshot_steps(tmp_path / "snapshots") == [0, 60]


def test_the_best_stays_until_a_better_one_is_on_disk(opened, tmp_path, monkeypatch):
    scores: dict[int, float] = {}
    snapshots, _ = opened(
        scored=scores.__contains__, best=lambda steps: min(steps, key=scores.__getitem__, default=None)
    )
    folder = tmp_path / "snapshots"

    def measured(step: int, score: float) -> list[int]:
        scores[step] = score
        snapshots.make_room()
        snapshots.hand_over(step, params())
        snapshots.settle()
        return snapshot_steps(folder)

    assert measured(10, 3.0) == [10]
    with monkeypatch.context() as patched:
        patched.setattr("jaxlean.run.snapshots.write_manifest", full)
        assert measured(20, 1.0) == [10]
    scores[30] = 0.5
    snapshots.make_room()
    snapshots.settle()
    assert snapshot_steps(folder) == [10], "that of 30 is not there yet"
    assert measured(30, 0.5) == [30]
    assert measured(40, 0.75) == [30]


def test_what_has_its_score_is_not_left_out(opened, tmp_path):
    """It lies there, and training has not taken it up yet."""
    came: set[int] = set()
    snapshots, _ = opened(waiting=1, came=came.__contains__)
    for step in (10, 20, 30):
        snapshots.hand_over(step, params())
        snapshots.settle()
        came.add(10)
    assert snapshot_steps(tmp_path / "snapshots") == [10, 30]
    assert snapshots.skipped == 1
    came.add(30)
    snapshots.hand_over(40, params())
    snapshots.settle()
    assert snapshot_steps(tmp_path / "snapshots") == [10, 30, 40], "only the last one waits"


def test_a_score_that_came_while_the_lease_was_taken_keeps_its_snapshot(opened, tmp_path):
    came: set[int] = set()

    class Slow(Leases):
        def take(self, path):
            came.add(int(path.parent.name))
            return super().take(path)

    snapshots, _ = opened(waiting=1, came=came.__contains__, leases=Slow())
    for step in (10, 20):
        snapshots.hand_over(step, params())
        snapshots.settle()
    assert snapshot_steps(tmp_path / "snapshots") == [10, 20]
    assert snapshots.skipped == 0


def test_a_dead_evaluators_snapshot_may_be_left_out(opened, tmp_path, monkeypatch):
    snapshots, _ = opened(waiting=1)
    snapshots.hand_over(10, params())
    snapshots.settle()
    lease = Leases().take(tmp_path / "snapshots" / "10" / LEASE)
    lease.file.write_text(lease.file.read_text().replace(f'"started": {lease.holder.started}', '"started": 1'))
    snapshots.hand_over(20, params())
    snapshots.settle()
    assert snapshots.waiting() == [20]
    assert not lease.held()


def test_where_writing_is_slow_what_was_not_begun_is_left_out(opened, tmp_path, monkeypatch):
    snapshots, _ = opened(waiting=5)
    gate, begun = threading.Event(), threading.Event()
    write = Snapshots._write_folder

    def slow(self, name, host, content) -> None:
        begun.set()
        gate.wait()
        write(self, name, host, content)

    monkeypatch.setattr(Snapshots, "_write_folder", slow)
    snapshots.hand_over(0, params(), whole=True)
    begun.wait()
    for step in (10, 20, 30):
        snapshots.hand_over(step, params())  # returns though nothing is written
    gate.set()
    snapshots.settle()
    assert snapshot_steps(tmp_path / "snapshots") == [0, 30]
    assert snapshots.skipped == 2


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_a_snapshot_and_is_told_once(opened, tmp_path, monkeypatch):
    said: list[str] = []
    snapshots, _ = opened(say=said.append)
    with monkeypatch.context() as patched:
        patched.setattr("jaxlean.run.snapshots.write_manifest", full)
        for step in (10, 20):
            snapshots.hand_over(step, params())
            snapshots.settle()
    assert said == ["the snapshot of step 10 cannot be written, and is left out: [Errno 28] No space left on device"]
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert snapshots.skipped == 2
    snapshots.hand_over(30, params())
    snapshots.settle()
    assert snapshots.waiting() == [30]


def test_a_snapshot_that_is_not_what_was_written_is_refused(opened, tmp_path):
    snapshots, _ = opened()
    folder = tmp_path / "snapshots"
    snapshots.hand_over(10, params())
    snapshots.settle()
    file = folder / "10" / "arrays.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(Damaged, match=rf"has {len(whole) - 5} bytes instead of {len(whole)}"):
        read_snapshot(folder, "10")
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(Damaged, match="CRC-32 differs"):
        read_snapshot(folder, "10")
    (folder / "10" / "complete.json").unlink()
    with pytest.raises(Damaged, match=r"complete\.json is missing"):
        read_snapshot(folder, "10")
    with pytest.raises(FileNotFoundError):
        read_snapshot(folder, "20")


def test_one_that_cannot_be_read_now_is_not_held_for_damaged(opened, tmp_path, monkeypatch):
    snapshots, _ = opened()
    folder = tmp_path / "snapshots"
    snapshots.hand_over(10, params())
    snapshots.settle()

    def fails(error: Exception):
        def fail(*_: object) -> None:
            raise error

        return fail

    for name, error in (
        ("jaxlean.run.manifest._checksum", OSError(errno.ESTALE, "Stale file handle")),
        ("safetensors.numpy.load_file", OSError(errno.EIO, "Input/output error")),
        ("safetensors.numpy.load_file", FileNotFoundError("No such file or directory")),  # as safetensors says it
    ):
        with monkeypatch.context() as patched:
            patched.setattr(name, fails(error))
            with pytest.raises(Unreadable, match=r"arrays\.safetensors is not readable \("):
                read_snapshot(folder, "10")
    read_snapshot(folder, "10")
    file, manifest = folder / "10" / "arrays.safetensors", folder / "10" / "complete.json"
    file.write_bytes(b"garbled")
    manifest.unlink()
    write_manifest(folder / "10", {"step": 10, "leaves": {}})
    with pytest.raises(Damaged, match=r"arrays\.safetensors is not readable \(") as damaged:
        read_snapshot(folder, "10")
    file.unlink()
    with pytest.raises(Damaged, match=r"arrays\.safetensors is missing") as missing:
        read_snapshot(folder, "10")
    manifest.unlink()
    write_manifest(folder / "10", {"step": 10, "leaves": {}})
    with pytest.raises(Damaged, match=r"arrays\.safetensors is not readable \(") as unlisted:
        read_snapshot(folder, "10")
    assert not any(isinstance(found.value, Unreadable) for found in (damaged, missing, unlisted))


def test_a_resumed_run_finds_those_up_to_its_step(opened, tmp_path):
    snapshots, _ = opened(waiting=9)
    for step in (10, 20, 30):
        snapshots.hand_over(step, params())
        snapshots.settle()
    (tmp_path / "snapshots" / ".writing-40").mkdir()
    (tmp_path / "snapshots" / "20" / "arrays.safetensors").write_bytes(b"cut")
    again, _ = opened(waiting=9, resume_step=25)
    assert again.token(10) == snapshots.token(10)
    assert again.waiting() == [10, 20]  # the second is refused by who measures it
    assert {entry.name for entry in (tmp_path / "snapshots").iterdir()} == {"10", "20"}
    opened()
    assert snapshot_steps(tmp_path / "snapshots") == []


def test_what_does_not_train_is_written_once(opened, tmp_path):
    snapshots, _ = opened()
    snapshots.write_frozen(params(0.5))
    snapshots.write_frozen(params(0.7))
    jax.tree.map(
        np.testing.assert_array_equal,
        read_snapshot(tmp_path / "snapshots", "frozen")[1],
        jax.device_get(params(0.5)),
    )
    assert snapshot_steps(tmp_path / "snapshots") == []


def test_origin(tmp_path):
    assert read_origin(tmp_path) is None
    origin = Origin("a1", "cpu", {"data": 2, "fsdp": 1}, 4, "float32", "/somewhere", False)
    write_origin(tmp_path, origin)
    assert read_origin(tmp_path) == origin
    (tmp_path / "run.json").write_text('{"run": "a1"')
    assert read_origin(tmp_path) is None
