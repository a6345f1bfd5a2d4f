import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean import tree
from jaxlean.errors import ConfigError, ModelError

KEYS = st.text("abc_1", min_size=1, max_size=4)
LEAVES = st.integers()
# No empty branch: it has no leaf, so `flatten` forgets it, as it says.
TREES = st.recursive(
    st.dictionaries(KEYS, LEAVES, min_size=1, max_size=4),
    lambda inner: st.dictionaries(KEYS, LEAVES | inner, min_size=1, max_size=4),
    max_leaves=12,
)


def shaped(**shapes: tuple[int, ...]) -> tree.Tree:
    """A tree of things with a shape; `__` in a name stands for the dot of a path."""
    return tree.unflatten({path.replace("__", "."): SimpleNamespace(shape=shape) for path, shape in shapes.items()})


@given(TREES)
def test_unflatten_is_the_inverse_of_flatten(nested: tree.Tree) -> None:
    leaves = tree.flatten(nested)
    assert tree.unflatten(leaves) == nested
    assert list(leaves) == sorted(leaves)


def test_flatten_forgets_empty_branches_and_prefixes_paths() -> None:
    assert tree.flatten({"a": {}, "b": {"c": 1}}, "x.") == {"x.b.c": 1}


@pytest.mark.parametrize("paths", [("a", "a.b"), ("a.b", "a.b.c")])
def test_a_leaf_cannot_be_a_branch(paths: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="a leaf stands where a branch should be"):
        tree.unflatten(dict.fromkeys(paths, 1))


@given(TREES)
def test_map_with_path_keeps_structure_and_tells_the_path(nested: tree.Tree) -> None:
    mapped = tree.map_with_path(lambda path, leaf: (path, leaf), nested)
    assert tree.flatten(mapped) == {path: (path, leaf) for path, leaf in tree.flatten(nested).items()}


@given(TREES, st.data())
def test_merge_is_the_inverse_of_split(nested: tree.Tree, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(list(tree.flatten(nested)))))
    first, rest = tree.split(nested, chosen.__contains__)
    assert set(tree.flatten(first)) == chosen
    assert not set(tree.flatten(rest)) & chosen
    assert tree.merge(first, rest) == nested


def test_merge_refuses_a_path_that_stands_twice() -> None:
    with pytest.raises(AssertionError, match=r"a\.b stands in two trees"):
        tree.merge({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}})


PATHS = ["embed.embedding", "layers.attention.query.kernel", "layers.attention.query.bias", "layers.mlp.up.kernel"]


def test_the_first_rule_that_matches_decides() -> None:
    rules = [("query.*bias", 1), ("attention", 2), (".*", 3)]
    assert tree.match(rules, PATHS, what="test") == dict(zip(PATHS, (3, 2, 1, 3), strict=True))


@given(st.lists(st.sampled_from(["embed", "attention", "kernel", "bias", r"^layers\.", "up|query", ".*"]), max_size=5))
def test_match_agrees_with_its_definition(patterns: list[str]) -> None:
    rules = [(pattern, i) for i, pattern in enumerate(patterns)]
    wanted = {path: next((i for pattern, i in rules if re.search(pattern, path)), -1) for path in PATHS}
    if {i for _, i in rules} <= set(wanted.values()):
        assert tree.match(rules, PATHS, what="test", default=-1) == wanted
    else:
        with pytest.raises(ConfigError, match="a rule matched no parameter"):
            tree.match(rules, PATHS, what="test", default=-1)


def test_a_falsy_value_and_default_count() -> None:
    assert tree.match([("embed", False)], PATHS[:2], what="test", default=0) == {PATHS[0]: False, PATHS[1]: 0}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("atention", 1), (".*", 2)], "matched no parameter"),
        ([(".*", 1), ("attention", 2)], "matched no parameter"),  # shadowed by the first
        ([("attention", 1)], r"no rule covers a parameter\n  where:  embed\.embedding"),
        ([("(", 1)], r"not a regular expression\n  got:    '\('"),
    ],
)
def test_rules_that_cannot_be_meant_are_errors(rules: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tree.match(rules, PATHS, what="train.trainable")
    assert str(caught.value).startswith("train.trainable: ")


def test_a_misspelt_rule_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'layers\.mlp\.up\.kernel'"):
        tree.match([("layers.mlp.upp.kernel", 1)], PATHS, what="test", default=0)


def test_check_accepts_equal_paths_and_shapes() -> None:
    tree.check({"a": {"b": np.zeros((2, 3))}}, shaped(a__b=(2, 3)))


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"a__b": (2, 3)}, r"a parameter is missing: a\.c\n  where:  dir\n  wanted: shape \(4,\)$"),
        ({"a__b": (2, 3), "a__cc": (4,)}, r"is missing: a\.c\n.*\n.*\n  fix:    did you mean 'a\.cc'"),
        ({}, r"is missing: a\.b \(and 1 more\)"),
        (
            {"a__b": (2, 3), "a__c": (4,), "x": (1,), "y": (1,)},
            r"the model does not have: x \(and 1 more\)\n.*\n  got:    shape \(1,\)",
        ),
        (
            {"a__b": (3, 2), "a__c": (4,)},
            r"has the wrong shape: a\.b\n  where:  dir\n  got:    \(3, 2\)\n  wanted: \(2, 3\)",
        ),
        ({"a__b": (2, 3), "a__c": (4, 1)}, r"has the wrong shape: a\.c"),
    ],
)
def test_check_names_the_first_parameter_that_does_not_fit(got: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tree.check(shaped(**got), shaped(a__b=(2, 3), a__c=(4,)), where="dir")
