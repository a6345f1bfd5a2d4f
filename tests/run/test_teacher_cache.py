"""The cache on disk: what it gives back, in whatever packing; killed, altered, of another teacher, without room."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxlean.data.epochs import Mix, Steps
from jaxlean.data.tokenize import Ragged, Tokens
from jaxlean.errors import RunError
from jaxlean.run import teacher_cache as module
from jaxlean.run.teacher_cache import TeacherCache, keys, places
from jaxlean.train.distill import IDS, LOGS

K = 3


def rows(num, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for length in rng.integers(3, 12, num):
        mask = rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        out.append(Tokens(rng.integers(0, 1000, length).astype(np.int32), mask))
    return out


def words(examples, i):
    """What a teacher says of a row: numbers that only this row has."""
    tokens, _ = examples[i]
    at = places(examples, i)
    ids = (tokens[at, None] * 31 + at[:, None] * 7 + np.arange(K)) % 50_000
    return {IDS: ids.astype(np.int32), LOGS: -np.arange(len(at) * (K + 1)).reshape(-1, K + 1) / 8}


def cache(folder, whose=None, **how):
    return TeacherCache(
        folder, whose or {"teacher": "a", "top_k": K},
        **({"num_ids": K, "num_logs": K + 1, "vocab_size": 50_000, "dtype": np.float16} | how),
    )  # fmt: skip


def fill(found, examples):
    missing = found.of(examples, np.arange(len(examples)))
    if len(missing):
        found.add(missing, (words(examples, int(i)) for i in missing))
    return missing


def reopened(folder, examples):
    found = cache(folder)
    found.of(examples, np.arange(len(examples)))
    return found


def test_what_was_said_comes_back_with_any_packing_order_and_choice_of_rows(tmp_path):
    every = rows(40)
    examples = Ragged.of(every)
    assert len(fill(cache(tmp_path / "c"), examples)) == 40
    again = cache(tmp_path / "c")
    assert again.place_bytes == K * 2 + (K + 1) * 2, "ids below 2^16 take two bytes"
    # other rows first, half of the old ones, in another order
    chosen = Ragged.of([*rows(5, seed=1), *every[30:10:-1]])
    assert list(fill(again, chosen)) == [0, 1, 2, 3, 4]
    steps = Steps(chosen, Mix([25], None, 7, shuffle=True), rows=2, length=24, packing=True)
    steps.beside = lambda own: again.beside(own, 24)
    seen = 0
    for number in range(len(steps)):
        batch = steps[number]
        assert (batch[IDS].shape, batch[IDS].dtype) == ((2, 24, K), np.int32)
        assert (batch[LOGS].shape, batch[LOGS].dtype) == ((2, 24, K + 1), np.float16)
        for r in range(2):
            said = np.zeros((24, K), np.int32)
            for segment, i in enumerate(steps.row(number * 2 + r), 1):
                start = int(np.flatnonzero(batch["segments"][r] == segment)[0])
                found = words(chosen, int(i))
                said[start + places(chosen, int(i))] = found[IDS]
                np.testing.assert_array_equal(batch[LOGS][r, start + places(chosen, int(i))], found[LOGS])
                seen += 1
            np.testing.assert_array_equal(batch[IDS][r], said)
            # a place is the one before its token
            assert set(np.flatnonzero(said.any(1)) + 1) <= set(np.flatnonzero(batch["loss_mask"][r]))
    assert seen == 25


def test_the_same_row_is_asked_about_once(tmp_path):
    one = rows(3)
    examples = Ragged.of([*one, *one])
    assert list(fill(cache(tmp_path), examples)) == [0, 1, 2]
    masked = Tokens(one[0].input_ids, np.r_[False, ~one[0].loss_mask[1:-1], True])
    assert len(set(keys(Ragged.of([one[0], masked])))) == 2, "the same tokens, but others are learned"


def test_labels_have_no_ids(tmp_path):
    labels = np.asarray([2, -100, -100, 1], np.int32)
    examples = Ragged.of([Tokens(np.arange(4, dtype=np.int32), np.zeros(4, bool), more={"labels": labels})])
    found = cache(tmp_path, num_ids=0, num_logs=5)
    logs = np.log(np.full((2, 5), 0.2))
    found.add(found.of(examples, np.arange(1)), iter([{LOGS: logs}]))
    batch = found.beside([np.asarray([0]), np.zeros(0, int)], 6)
    assert set(batch) == {LOGS}
    np.testing.assert_array_equal(np.flatnonzero(batch[LOGS][0].any(1)), [0, 3])
    assert not batch[LOGS][1].any()


def test_a_killed_pass_goes_on_behind_the_last_whole_shard(tmp_path):
    examples = Ragged.of(rows(30))
    first = cache(tmp_path)
    missing = first.of(examples, np.arange(30))
    first.add(missing[:10], (words(examples, int(i)) for i in missing[:10]))

    def killed():
        yield words(examples, int(missing[10]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.add(missing[10:20], killed())
    (left,) = tmp_path.glob("*.part")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left.rename(left.with_name(f"{left.name.rpartition('.')[0].rpartition('.')[0]}.{gone.pid}.part"))
    second = cache(tmp_path)
    np.testing.assert_array_equal(second.of(examples, np.arange(30)), missing[10:])
    fill(second, examples)
    assert not len(cache(tmp_path).of(examples, np.arange(30)))
    assert not list(tmp_path.glob("*.part")), "what a process that is no more left is removed"


def test_two_runs_that_begin_with_one_empty_cache_write_it_together(tmp_path):
    """The first ends in the midst of the second's pass: neither reads what the other has half written."""
    examples = Ragged.of(rows(30))
    files = {"first": cache(tmp_path), "second": cache(tmp_path)}
    missing = {name: found.of(examples, np.arange(30)) for name, found in files.items()}["second"]
    half, ended = threading.Event(), threading.Event()

    def said(stops_at, then):
        for number, i in enumerate(missing):
            if number == stops_at:
                then()
            yield words(examples, int(i))

    def waits():
        half.set()
        assert ended.wait(60)

    with ThreadPoolExecutor() as pool, pytest.MonkeyPatch.context() as patched:
        patched.setattr(module.os, "getpid", lambda: threading.get_ident() % 2**22)  # threads in place of processes
        patched.setattr(module, "_is_alive", lambda process: True)

        def begin():
            began.append(pool.submit(files["second"].add, missing, said(20, waits)))
            assert half.wait(60)

        began = []
        files["first"].add(missing, said(10, begin))
        try:
            for found in (files["first"], reopened(tmp_path, examples)):
                for i in range(30):
                    np.testing.assert_array_equal(found.said(i)[LOGS], words(examples, i)[LOGS])
        finally:
            ended.set()
        began[0].result(60)
    assert len(reopened(tmp_path, examples).of(examples, np.arange(30))) == 0
    assert {entry.name[:5] for entry in tmp_path.iterdir()} == {"rows-", "teach"}
    assert not list(tmp_path.glob("*.part"))


def test_another_teacher_that_came_first_meanwhile_is_refused(tmp_path):
    examples = Ragged.of(rows(4))
    late = cache(tmp_path, {"teacher": "b", "top_k": K})
    fill(cache(tmp_path), examples)
    with pytest.raises(RunError, match="of another teacher"):
        fill(late, Ragged.of(rows(4, seed=1)))
    assert len(list(tmp_path.glob("rows-*"))) == 1


@pytest.mark.parametrize("change", ["cut", "alter", "lose"])
def test_a_damaged_shard_is_refused_by_name(tmp_path, change):
    fill(cache(tmp_path), Ragged.of(rows(4)))
    file = next(tmp_path.glob("rows-*")) / "logs.npy"
    content = bytearray(file.read_bytes())
    if change == "lose":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content[:-4] if change == "cut" else content)
    with pytest.raises(RunError, match=r"the cache is damaged(?s:.)*logs.npy(?s:.)*remove that folder"):
        cache(tmp_path)
    shutil.rmtree(file.parent)
    assert len(fill(cache(tmp_path), Ragged.of(rows(4)))) == 4


def test_another_teacher_s_cache_is_refused(tmp_path):
    fill(cache(tmp_path), Ragged.of(rows(2)))
    with pytest.raises(RunError, match=r"of another teacher(?s:.)*: teacher, top_k(?s:.)*top_k 3(?s:.)*top_k 9"):
        cache(tmp_path, {"teacher": "b", "top_k": 9})


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else"):
        cache(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        cache(tmp_path / "thesis.txt")
    with pytest.raises(RunError, match="cannot be made or written"):
        cache(tmp_path / "thesis.txt" / "cache")


def test_a_full_disk_is_said_before_it_is_full(tmp_path, monkeypatch):
    found = cache(tmp_path / "not" / "yet")
    examples = Ragged.of(rows(6))
    needed = found.missing_bytes(found.of(examples, np.arange(6)))
    assert needed == sum(int(e.loss_mask[1:].sum()) for e in rows(6)) * found.place_bytes
    found.check_space(needed)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("", (), {"free": needed - 1}))
    with pytest.raises(RunError, match="no disk space for what the teacher says"):
        found.check_space(needed)


def test_the_teacher_s_quality_is_kept(tmp_path):
    found = cache(tmp_path)
    assert found.quality("x") is None
    found.keep_quality("x", {"loss": 1.5})
    found.keep_quality("y", {"loss": 2.5})
    assert cache(tmp_path).quality("x") == {"loss": 1.5}
    assert json.loads((tmp_path / "teacher.json").read_text())["teacher"] == "a"
