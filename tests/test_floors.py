"""The shape of the house: which file may import which, where tests lie, how long a file may be.

ARCHITECTURE.md says why. Every rule here is a function from files to breaches, and is fed a planted breach as well.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "jaxlean"

# The floor of a top-level module or package. A file imports only from lower floors, and freely inside its own package.
FLOORS = {
    **dict.fromkeys(("errors", "redact"), 0),
    **dict.fromkeys(("codec", "config", "fingerprint", "platform", "ranks", "tree"), 1),
    **dict.fromkeys(("models", "data", "adapt", "xla", "cost"), 2),
    **dict.fromkeys(("hub", "convert"), 3),
    **dict.fromkeys(("train", "compress"), 4),
    "run": 5,
    **dict.fromkeys(("plan", "curate"), 6),
    **dict.fromkeys(("search", "receipt", "report"), 7),
    "audit": 8,  # above receipt, which says what the cuts are called and when one is in force
    "cli": 9,
    **dict.fromkeys(("__init__", "__main__"), 10),  # the faces of the package: they import what they show
}
MAX_LINES = 500
# These say where a thing was put, not what it is.
FORBIDDEN_NAMES = {"util", "utils", "common", "helper", "helpers", "misc", "tools", "shared"}
WITHOUT_TEST = {"__main__"}  # calls the command line and nothing else; tests/cli/test_entry.py starts it


def sources(folder: str) -> dict[str, str]:
    """`{path from the root: text}` of every Python file in a folder."""
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in sorted((ROOT / folder).rglob("*.py"))}


def module_of(path: str) -> list[str]:
    """`jaxlean/hub/read.py` -> [jaxlean, hub, read]; a package is named by its __init__."""
    return list(Path(path).with_suffix("").parts)


def imported(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line and dotted parts of everything a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            # `from .x import y` in jaxlean/hub/read.py starts at jaxlean.hub; each further dot goes one up.
            start = module_of(path)[: -node.level] if node.level else []
            start += (node.module or "").split(".") if node.module else []
            for name in node.names:
                yield node.lineno, [*start, name.name]


def floor_breaches(files: Mapping[str, str]) -> list[str]:
    """Imports that go up or sideways, and places that have no floor."""
    found = []
    for path, text in files.items():
        own = module_of(path)[1]
        if own not in FLOORS:
            found.append(f"{path}: {own} has no floor; give it one in {Path(__file__).name} and ARCHITECTURE.md")
            continue
        for line, parts in imported(path, text):
            if parts[0] != PACKAGE or parts == [PACKAGE, "__version__"]:
                continue
            other = parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"
            if other != own and FLOORS[other] >= FLOORS[own]:
                way = "sideways" if FLOORS[other] == FLOORS[own] else "up"
                found.append(f"{path}:{line}: {own} (floor {FLOORS[own]}) imports {way}: {'.'.join(parts)}")
    return found


def library_breaches(files: Mapping[str, str]) -> list[str]:
    """errors.py stands on the standard library alone, data/ does without jax, and nothing at run time needs torch."""
    found = []
    for path, text in files.items():
        own = module_of(path)[1]
        for line, parts in imported(path, text):
            outside = parts[0] not in sys.stdlib_module_names
            without_jax = own in ("data", "config", "tree") and parts[0] in ("jax", "flax", "optax", "orbax")
            if (own == "errors" and outside) or without_jax or parts[0] in ("torch", "peft"):
                found.append(f"{path}:{line}: imports {'.'.join(parts)}")
    return found


def untested(files: Mapping[str, str], tests: set[str]) -> list[str]:
    """Modules whose test file is missing: jaxlean/hub/read.py is tested in tests/hub/test_read.py.

    An __init__ that only holds names needs none; one that defines something has a test_init.py beside the others.
    """
    wanted = {}
    for path, text in files.items():
        _, *folders, name = module_of(path)
        defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(text, path)))
        if name not in WITHOUT_TEST and (name != "__init__" or defines):
            wanted[path] = "/".join(["tests", *folders, f"test_{name.strip('_')}.py"])
    return [f"{path}: there is no {test}" for path, test in wanted.items() if test not in tests]


def too_long(files: Mapping[str, str]) -> list[str]:
    return [f"{path}: {n} lines" for path, text in files.items() if (n := len(text.splitlines())) > MAX_LINES]


def empty_names(files: Mapping[str, str]) -> list[str]:
    """Files and folders whose name says nothing, `_utils` at the end of a name included."""
    return [path for path in files for part in module_of(path) if FORBIDDEN_NAMES.intersection(part.lower().split("_"))]


def test_imports_go_down() -> None:
    assert floor_breaches(sources(PACKAGE)) == []


def test_libraries_stay_in_their_place() -> None:
    assert library_breaches(sources(PACKAGE)) == []


def test_every_module_has_its_test() -> None:
    assert untested(sources(PACKAGE), set(sources("tests"))) == []


@pytest.mark.parametrize("folder", [PACKAGE, "tests", "benchmarks", "configs"])
def test_no_file_is_too_long_or_named_for_nothing(folder: str) -> None:
    assert too_long(sources(folder)) == []
    assert empty_names(sources(folder)) == []


@pytest.mark.parametrize(
    ("path", "text", "way"),
    [
        ("jaxlean/models/rope.py", "from jaxlean.hub.read import read", "up"),
        ("jaxlean/models/rope.py", "import jaxlean.run.finetune as f", "up"),
        ("jaxlean/models/rope.py", "from jaxlean import hub", "up"),
        ("jaxlean/models/rope.py", "from jaxlean import load", "up"),
        ("jaxlean/models/rope.py", "import jaxlean", "up"),
        ("jaxlean/models/rope.py", "from ..hub import read", "up"),
        ("jaxlean/models/__init__.py", "from ..hub import read", "up"),
        ("jaxlean/models/deep/rope.py", "from ...hub import read", "up"),
        ("jaxlean/models/rope.py", "def f():\n    from jaxlean.train import step", "up"),
        ("jaxlean/models/rope.py", "from typing import *\nif TYPE_CHECKING:\n    import jaxlean.cli", "up"),
        ("jaxlean/models/rope.py", "from jaxlean.adapt.lora import add", "sideways"),
        ("jaxlean/models/rope.py", "from .. import data", "sideways"),
        ("jaxlean/train/step.py", "from jaxlean.compress import prune", "sideways"),
        ("jaxlean/tree.py", "from jaxlean.config import load", "sideways"),
        ("jaxlean/errors.py", "from jaxlean.tree import match", "up"),
        ("jaxlean/run/finetune.py", "from jaxlean import cli", "up"),
    ],
)
def test_a_planted_import_is_found(path: str, text: str, way: str) -> None:
    (breach,) = floor_breaches({path: text})
    assert breach.startswith(f"{path}:{len(text.splitlines())}: ")
    assert f"imports {way}" in breach


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("jaxlean/hub/read.py", "from jaxlean.models.decoder import Decoder\nfrom jaxlean import tree, errors"),
        ("jaxlean/hub/read.py", "from .files import shards\nfrom ..models import rope\nimport jaxlean.hub.family"),
        ("jaxlean/run/report.py", "from jaxlean import __version__\nimport jax"),
        ("jaxlean/cli/train.py", "from jaxlean.run import finetune"),
        ("jaxlean/__init__.py", "from jaxlean.hub.load import load"),
    ],
)
def test_a_fair_import_passes(path: str, text: str) -> None:
    assert floor_breaches({path: text}) == []


def test_a_package_without_a_floor_is_found() -> None:
    assert "has no floor" in floor_breaches({"jaxlean/attic/old.py": ""})[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("jaxlean/errors.py", "import numpy"),
        ("jaxlean/data/pack.py", "def f():\n    import jax.numpy as jnp"),
        ("jaxlean/tree.py", "from flax import nnx"),
        ("jaxlean/hub/read.py", "from torch import load"),
    ],
)
def test_a_planted_library_is_found(path: str, text: str) -> None:
    assert len(library_breaches({path: text})) == 1
    assert library_breaches({path: "import re", "jaxlean/hub/read.py": "import jax"}) == []


def test_the_other_rules_can_fail() -> None:
    tests = {"tests/hub/test_read.py", "tests/test_hub.py"}
    files = {"jaxlean/hub/read.py": "", "jaxlean/models/read.py": "", "jaxlean/models/__init__.py": "a = 1"}
    assert untested(files, tests) == ["jaxlean/models/read.py: there is no tests/models/test_read.py"]
    assert untested({"jaxlean/hub/__init__.py": "def f(): ..."}, tests) == [
        "jaxlean/hub/__init__.py: there is no tests/hub/test_init.py"
    ]
    assert too_long({"a.py": "\n" * 500, "b.py": "\n" * 501}) == ["b.py: 501 lines"]
    assert empty_names({"a/tree.py": "", "a/utils.py": "", "helpers/b.py": "", "a/train_utils.py": ""}) == [
        *("a/utils.py", "helpers/b.py", "a/train_utils.py"),
    ]
