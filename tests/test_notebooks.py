"""The notebooks as they are committed: short, run without an error, with their pictures, over public names alone.

`.ci/notebooks` executes them. Here nothing runs; every rule is a function from notebooks to breaches, and is fed a
planted breach as well.
"""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What is read in five minutes; so many words of prose, at 200 a minute, leave as much time for code and picture.
MAX_CELLS, MAX_LINES_OF_CODE, MAX_WORDS = 20, 150, 450
MAX_BYTES = 300_000  # most of it the picture
# A folder that is somebody's: of a user, of this repository on a machine, of a process.
MACHINE = re.compile(r"(?<![\w.:/])/(home|Users|root|tmp|work|var|opt|private|mnt|content)/[\w.\-]+|[A-Z]:\\\\")
# What %magics and !commands are to Python: nothing.
NOT_PYTHON = re.compile(r"^\s*[%!]")

Notebook = dict[str, Any]


def read(file: Path) -> Notebook:
    found: Notebook = json.loads(file.read_text(encoding="utf-8"))
    return found


def text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def code(notebook: Notebook) -> list[str]:
    """The source of each code cell."""
    return [text(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def prose(notebook: Notebook) -> list[str]:
    return [text(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def outputs(notebook: Notebook) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def python(source: str) -> str:
    """A cell without its magics and commands, and without the lines these go on in."""
    kept, inside = [], False
    for line in source.splitlines():
        command = not inside and NOT_PYTHON.match(line)
        if command:  # a block might be empty without it
            kept.append(" " * (len(line) - len(line.lstrip())) + "pass")
        elif not inside:
            kept.append(line)
        inside = bool(inside or command) and line.endswith("\\")
    return "\n".join(kept)


def trees(notebook: Notebook) -> Iterator[ast.Module]:
    for source in code(notebook):
        yield ast.parse(python(source))


def badly_formed(notebook: Notebook) -> list[str]:
    """What of nbformat 4.5 everything that opens notebooks relies on; nbformat itself checks it when they are made."""
    found = []
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) < (4, 5):
        found.append("older than nbformat 4.5")
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        found.append("a cell without an id of its own")
    for number, cell in enumerate(notebook["cells"], 1):
        wanted = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            wanted |= {"execution_count", "outputs"}
        if set(cell) != wanted:
            found.append(f"cell {number}: has {sorted(cell)}, wanted {sorted(wanted)}")
        if cell["metadata"]:
            found.append(f"cell {number}: metadata {sorted(cell['metadata'])}, which change with every execution")
    if not text(notebook["cells"][0]["source"]).startswith("# "):
        found.append("the first cell is no title")
    return found


def not_as_executed(notebook: Notebook) -> list[str]:
    """Each code cell ran once, in order, without an error and without complaints; there is a picture."""
    found = []
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"executed out of order, or not at all: {counts}")
    for output in outputs(notebook):
        if output["output_type"] == "error":
            found.append(f"an error: {output['evalue']}")
        elif output.get("name") == "stderr":
            found.append(f"on stderr: {text(output['text'])[:200]}")
        elif any("widget" in kind for kind in output.get("data", {})):
            found.append("a widget, which shows nothing without its kernel")
        elif "\x1b" in text(output.get("text", "")):
            found.append("codes for a terminal's colours or progress bars")
    if not any("image/png" in output.get("data", {}) for output in outputs(notebook)):
        found.append("no picture")
    return found


def too_long(notebook: Notebook, num_bytes: int) -> list[str]:
    sizes = {
        "cells": (len(notebook["cells"]), MAX_CELLS),
        "lines of code": (sum(len(source.splitlines()) for source in code(notebook)), MAX_LINES_OF_CODE),
        "words": (sum(len(source.split()) for source in prose(notebook)), MAX_WORDS),
        "bytes": (num_bytes, MAX_BYTES),
    }
    return [f"{size:,} {what}, at most {most:,}" for what, (size, most) in sizes.items() if size > most]


def of_a_machine(notebook: Notebook) -> list[str]:
    """Absolute paths in what is written and in what came out."""
    told = [*code(notebook), *prose(notebook)]
    for output in outputs(notebook):
        told += [text(output.get("text", "")), text(output.get("data", {}).get("text/plain", ""))]
    return [match[0] for one in told for match in MACHINE.finditer(one)]


def private_or_missing(notebook: Notebook) -> list[str]:
    """Names of jaxlean that begin with `_`, and those that are not there."""
    found = []
    for tree in trees(notebook):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted = [(name.name, None) for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted = [(node.module or "", name.name) for name in node.names]
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr != "__file__":
                found.append(f"private: .{node.attr}")
                continue
            else:
                continue
            for module, name in wanted:
                if module.split(".")[0] == "jaxlean":
                    found += _of_import(module, name)
    return found


def _of_import(module: str, name: str | None) -> list[str]:
    whole = module if name is None else f"{module}.{name}"
    if any(part.startswith("_") for part in whole.split(".")):
        return [f"private: {whole}"]
    try:
        held = importlib.import_module(module)
    except ModuleNotFoundError:
        return [f"missing: {module}"]
    if name is None or hasattr(held, name):
        return []
    try:
        importlib.import_module(whole)
    except ModuleNotFoundError:
        return [f"missing: {whole}"]
    return []


def example(source: str = "", *, output: dict[str, Any] | None = None, **of_cell: Any) -> Notebook:
    """A notebook of a title, and a cell that draws a picture."""
    picture = {"output_type": "display_data", "data": {"image/png": "", "text/plain": "<Figure>"}, "metadata": {}}
    cell = {
        "cell_type": "code", "id": "b", "metadata": {}, "execution_count": 1, "source": source,
        "outputs": [picture, *([output] if output is not None else [])], **of_cell,
    }  # fmt: skip
    title = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# A title"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [title, cell]}


def breaches(notebook: Notebook, num_bytes: int = 0) -> list[str]:
    return [
        *badly_formed(notebook), *not_as_executed(notebook), *too_long(notebook, num_bytes), *of_a_machine(notebook),
        *private_or_missing(notebook),
    ]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_is_one_that_can_be_read(file: Path) -> None:
    assert breaches(read(file), file.stat().st_size) == []


def test_they_are_numbered_and_the_readme_lists_each() -> None:
    assert [file.name[:3] for file in FILES] == [f"{number:02}_" for number in range(1, len(FILES) + 1)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in FILES if f"(notebooks/{file.name})" not in readme] == []


def test_the_example_passes() -> None:
    assert breaches(example("import jaxlean\n!jaxlean plan \\\n  CONFIG\nfrom jaxlean.config import load")) == []


@pytest.mark.parametrize(
    ("notebook", "said"),
    [
        (example(id="a"), "an id of its own"),
        (example(metadata={"execution": {}}), "change with every execution"),
        (example(execution_count=None), "not at all"),
        (example(outputs=[]), "no picture"),
        (example(output={"output_type": "error", "ename": "", "evalue": "no room", "traceback": []}), "no room"),
        (example(output={"output_type": "stream", "name": "stderr", "text": "deprecated"}), "deprecated"),
        (example(output={"output_type": "stream", "name": "stdout", "text": ["\x1b[32m60%"]}), "colours"),
        (example(output={"output_type": "stream", "name": "stdout", "text": "in /home/ann/runs"}), "/home/ann"),
        (example("load('/tmp/abc/run')"), "/tmp/abc"),
        (example("\n" * 200), "200 lines of code"),
        (example("from jaxlean.config.read import _find_paths"), "private: jaxlean.config.read._find_paths"),
        (example("from jaxlean.config import read\nread._apply"), "private: ._apply"),
        (example("from jaxlean.config import lode"), "missing: jaxlean.config.lode"),
        (example("import jaxlean.planning"), "missing: jaxlean.planning"),
    ],
)
def test_a_planted_breach_is_found(notebook: Notebook, said: str) -> None:
    assert any(said in one for one in breaches(notebook)), breaches(notebook)
    assert too_long(example(), MAX_BYTES + 1)
