"""Vectors of words, from every kind of file, and what can be wrong with one."""

import numpy as np
import pytest

from jaxlean.data.word_vectors import read_vectors
from jaxlean.errors import DataError

LINES = "the 0.5 1 2\ncharge back 3 4 5\nCard 6 7 8\ncard 9 9 9\n"


@pytest.mark.parametrize("first", ["", "4 3\n"])
def test_text_with_and_without_a_first_line(tmp_path, first):
    (tmp_path / "a.vec").write_text(first + LINES)
    found = read_vectors(tmp_path / "a.vec", ["the", "charge back" if first else "The", "Card", "nothing"])
    np.testing.assert_array_equal(found["Card"], [6, 7, 8])
    np.testing.assert_array_equal(found["the"], [0.5, 1, 2])
    assert "nothing" not in found
    # a word that stands there in lower case only; and one with a space, where the first line tells the numbers apart
    np.testing.assert_array_equal(found["charge back" if first else "The"], [3, 4, 5] if first else [0.5, 1, 2])


def test_text_as_editors_on_windows_write_it(tmp_path):
    (tmp_path / "a.vec").write_bytes("\ufeffthe 1 2\r\ncard 0 1\r\n".encode())
    assert {word: row.tolist() for word, row in read_vectors(tmp_path / "a.vec", ["the", "card"]).items()} == {
        "the": [1, 2], "card": [0, 1],
    }  # fmt: skip


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", words=np.array(["the", "card"]), vectors=np.eye(2))
    found = read_vectors(tmp_path / "a.npz", ["Card"])
    assert found.keys() == {"Card"}
    np.testing.assert_array_equal(found["Card"], [0, 1])


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ("2 3\nthe 1 2 3\ncard 1 2\n", "a line of another length", "a.vec:3"),
        ("the 1 2 3\ncard 1 two 3\n", "not a word and its numbers", "a.vec:2"),
        ("the\t1\t2\t3\n", "a word and its numbers, with spaces between them", "a.vec:1"),
        ("the 1 2 3\ncard 1 nan 3\n", "not of finite numbers", "a.vec:2"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, message, where):
    (tmp_path / "a.vec").write_text(text)
    with pytest.raises(DataError) as raised:
        read_vectors(tmp_path / "a.vec", ["the", "card"])
    assert message in str(raised.value)
    assert where in str(raised.value)


def test_arrays_that_do_not_belong_together(tmp_path):
    np.savez(tmp_path / "a.npz", words=np.array(["the"]), vectors=np.eye(2))
    with pytest.raises(DataError, match="do not belong together"):
        read_vectors(tmp_path / "a.npz", ["the"])
    np.savez(tmp_path / "b.npz", words=np.array(["the"]))
    with pytest.raises(DataError, match="not a file of vectors"):
        read_vectors(tmp_path / "b.npz", ["the"])
    np.savez(tmp_path / "c.npz", words=np.array(["the"]), vectors=np.array([[np.nan]]))
    with pytest.raises(DataError, match="finite"):
        read_vectors(tmp_path / "c.npz", ["the"])
    with pytest.raises(DataError, match="no such file"):
        read_vectors(tmp_path / "d.npz", ["the"])
