"""Parameter trees: plain nested dicts, addressed by dotted paths, governed by ordered rules.

A tree is `{"layers": {"attention": {"query": {"kernel": Array}}}}`; its path is
`layers.attention.query.kernel`. Everything that is "per parameter" (what trains, learning-rate group, weight
decay, sharding, quantization) is one mechanism: a list of `(regex, value)` rules, the first that matches a
path decides, a rule that matches nothing is an error. Nothing here knows jax: a leaf is anything that is not a dict.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jaxlean.errors import ConfigError, ModelError, did_you_mean

Tree = dict[str, Any]
Value = TypeVar("Value")
Rules = Sequence[tuple[str, Value]]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> `{path: leaf}`, in sorted path order. An empty dict has no leaf and vanishes.

    >>> flatten({"b": {"c": 1}, "a": 2})
    {'a': 2, 'b.c': 1}
    """
    out: dict[str, Any] = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """`{path: leaf}` -> nested dict; the inverse of `flatten`."""
    tree: Tree = {}
    for path in sorted(leaves):
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            assert isinstance(node, dict), f"{path}: a leaf stands where a branch should be"
        node[last] = leaves[path]
    return tree


def map_with_path(function: Callable[[str, Any], Any], tree: Mapping[str, Any]) -> Tree:
    """Apply `function(path, leaf)` to every leaf, keeping the structure."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


def match(rules: Rules[Value], paths: Iterable[str], *, what: str, default: Value | None = None) -> dict[str, Value]:
    """Decide a value for every path: the first rule whose regex is found in the path (`re.search`).

    Args:
        rules: `(regex, value)` pairs in order of precedence.
        paths: parameter paths.
        what: what the rules state, for the message (`train.trainable`, `sharding`).
        default: the value of a path that no rule matches; without it such a path is an error.

    Returns:
        `{path: value}` for every path.

    Raises:
        ConfigError: a regex that does not compile, a rule that no path *reaches* (it matches nothing, or only what
            an earlier rule already took), or a path that no rule covers.
    """
    paths = list(paths)
    compiled = []
    for pattern, value in rules:
        try:
            compiled.append((re.compile(pattern), value))
        except re.error as error:
            raise ConfigError(f"{what}: not a regular expression", got=repr(pattern), fix=str(error)) from error
    decided: dict[str, Value] = {}
    used = [False] * len(compiled)
    for path in paths:
        for i, (regex, value) in enumerate(compiled):
            if regex.search(path):
                decided[path] = value
                used[i] = True
                break
        else:
            if default is None:
                raise ConfigError(
                    f"{what}: no rule covers a parameter", where=path, fix="add a rule, or a last rule '.*'"
                )
            decided[path] = default
    for (pattern, _), hit in zip(rules, used, strict=True):
        if not hit:
            raise ConfigError(
                f"{what}: a rule matched no parameter",
                got=repr(pattern),
                wanted="a regular expression found in at least one path that no earlier rule took",
                fix=did_you_mean(pattern, paths) if paths else "there are no parameters",
            )
    return decided


def split(tree: Mapping[str, Any], chosen: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Split a tree into (leaves whose path is chosen, all others); `merge` puts them together again."""
    leaves = flatten(tree)
    first = {path: leaf for path, leaf in leaves.items() if chosen(path)}
    rest = {path: leaf for path, leaf in leaves.items() if path not in first}
    return unflatten(first), unflatten(rest)


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Join trees that share no path."""
    out: dict[str, Any] = {}
    for tree in trees:
        for path, leaf in flatten(tree).items():
            assert path not in out, f"{path} stands in two trees"
            out[path] = leaf
    return unflatten(out)


def check(got: Mapping[str, Any], wanted: Mapping[str, Any], *, where: object = None) -> None:
    """Check that two trees have the same paths and shapes.

    `nnx.merge` pairs leaves by *position* and checks no shape, so a renamed key would silently give one
    parameter another's weights. This stands before every merge.

    Args:
        got, wanted: trees whose leaves have a `.shape`.
        where: the file or folder that `got` came from.

    Raises:
        ModelError: names the first parameter that is missing, extra or of the wrong shape.
    """
    have, want = flatten(got), flatten(wanted)
    missing = [path for path in want if path not in have]
    extra = [path for path in have if path not in want]
    if missing:
        raise ModelError(
            f"a parameter is missing: {missing[0]}" + (f" (and {len(missing) - 1} more)" if missing[1:] else ""),
            where=where,
            wanted=f"shape {tuple(want[missing[0]].shape)}",
            fix=did_you_mean(missing[0], extra) if extra else None,
        )
    if extra:
        raise ModelError(
            f"a parameter that the model does not have: {extra[0]}"
            + (f" (and {len(extra) - 1} more)" if extra[1:] else ""),
            where=where,
            got=f"shape {tuple(have[extra[0]].shape)}",
        )
    for path, leaf in want.items():
        if tuple(have[path].shape) != tuple(leaf.shape):
            raise ModelError(
                f"a parameter has the wrong shape: {path}",
                where=where,
                got=tuple(have[path].shape),
                wanted=tuple(leaf.shape),
            )
