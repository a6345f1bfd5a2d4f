import numpy as np

from jaxlean.curate.found import Found, one_reason, restore, save, write_text


def test_what_is_saved_comes_back(tmp_path):
    found = Found(
        np.array([2, 5]), np.array([1, 0], np.int16), ("a", "b"), np.array([0, -1]), "eval",
        np.array([0.5, np.nan], np.float32), {"loss": np.arange(6, dtype=np.float32)}, {"said": 3},
    )  # fmt: skip
    save(found, tmp_path, 1.5)
    back, seconds = restore(tmp_path)
    assert seconds == 1.5
    for name in ("rows", "codes", "of", "value"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    assert (back.reasons, back.beside, back.notes, list(back.scores)) == (("a", "b"), "eval", {"said": 3}, ["loss"])
    np.testing.assert_array_equal(back.scores["loss"], found.scores["loss"])
    assert back.counts() == {"a": 1, "b": 1}


def test_a_step_that_has_not_ended_is_not_there(tmp_path):
    assert restore(tmp_path) is None
    save(one_reason(np.array([1]), "why"), tmp_path, 0.0)
    (tmp_path / "found.json").unlink()  # killed between the two files
    assert restore(tmp_path) is None


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
