import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.shares import shares


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_all_that_is_wanted_and_no_more_than_is_there(sizes: list[int], data: st.DataObject) -> None:
    num = data.draw(st.integers(0, sum(sizes)))
    weights = data.draw(st.none() | st.lists(st.floats(0, 10), min_size=len(sizes), max_size=len(sizes)))
    given_ = shares(np.array(sizes), num, None if weights is None else np.array(weights))
    assert given_.sum() == num
    assert (given_ >= 0).all()
    assert (given_ <= sizes).all()


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.data())
def test_alike_groups_differ_by_one_row_unless_one_is_used_up(sizes: list[int], data: st.DataObject) -> None:
    given_ = shares(np.array(sizes), data.draw(st.integers(0, sum(sizes))))
    left = given_ < np.array(sizes)
    if left.any():
        assert given_.max() - given_[left].min() <= 1


def test_a_group_without_weight_gives_only_what_the_others_cannot() -> None:
    assert shares(np.array([5, 5, 5]), 8, np.array([1.0, 3.0, 0.0])).tolist() == [3, 5, 0]
    assert shares(np.array([5, 5, 5]), 12, np.array([1.0, 3.0, 0.0])).tolist() == [5, 5, 2]
