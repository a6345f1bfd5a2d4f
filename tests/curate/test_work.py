import numpy as np
import pytest

from jaxlean.curate.corpus import Corpus
from jaxlean.curate.work import Processes, Work
from jaxlean.errors import DataError, RunError


def lengths(corpus, numbers, factor):
    return {"length": np.array([len(words.text) * factor for words in corpus.words(numbers)], np.int64)}


def fails(corpus, numbers):
    raise DataError("what is wrong", where="here")


def dies(corpus, numbers):
    import os

    os._exit(9)


@pytest.fixture
def made(job, tmp_path):
    config = job([{"text": "x" * i} for i in range(1, 41)], ["quality"], curate={"processes": 2})
    return config, Corpus(config)


def test_shards_are_kept_and_not_computed_again(made, tmp_path):
    config, corpus = made
    alive = np.arange(40) % 2 == 0
    asked = []

    def noted(corpus, numbers, factor):
        asked.append(numbers.tolist())
        return lengths(corpus, numbers, factor)

    with Processes(config) as workers:
        work = Work(tmp_path / "work", workers)
        first = [
            (numbers, found["length"]) for numbers, found in work.shards(noted, corpus, alive, 2, rows=16, here=True)
        ]
        assert asked == [list(range(0, 16, 2)), list(range(16, 32, 2)), list(range(32, 40, 2))]
        (tmp_path / "work" / "shard-000001.npz").unlink()
        again = [
            (numbers, found["length"]) for numbers, found in work.shards(noted, corpus, alive, 2, rows=16, here=True)
        ]
    assert asked[3:] == [list(range(16, 32, 2))]
    for (one, length), (other, same) in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(length, same)
        np.testing.assert_array_equal(length, (one + 1) * 2)


@pytest.mark.slow
def test_processes_find_what_one_finds_and_hand_on_errors(made, tmp_path):
    config, corpus = made
    every = np.ones(40, bool)
    with Processes(config) as workers:
        work = Work(tmp_path / "work", workers)
        found = [found["length"] for _, found in work.shards(lengths, corpus, every, 3, rows=10)]
        np.testing.assert_array_equal(np.concatenate(found), np.arange(1, 41) * 3)
        with pytest.raises(DataError, match="what is wrong\n  where:  here"):
            list(work.shards(fails, corpus, every, name="fails", rows=10))
        with pytest.raises(RunError, match="ended from outside"):
            list(work.shards(dies, corpus, every, name="dies", rows=10))


@pytest.mark.slow
def test_a_process_that_finds_other_rows_says_so(tmp_path, job):
    """The first process has opened the folder; what comes into it then would shift the numbers of the rows."""
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "z.jsonl").write_text('{"text": "x"}\n' * 40)
    config = job([], ["quality"], data={"train": str(tmp_path / "many")}, curate={"processes": 2})
    corpus = Corpus(config)
    (tmp_path / "many" / "a.json").write_text('{"text": "y"}\n')
    with Processes(config) as workers:
        work = Work(tmp_path / "work", workers)
        with pytest.raises(RunError) as error:
            list(work.shards(lengths, corpus, np.ones(40, bool), 1, rows=10))
    assert "a source has changed while it was read" in str(error.value)
    assert "got:    41 rows\n  wanted: 40" in str(error.value)
