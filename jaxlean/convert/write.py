"""A converted config as a file: comments that say where it comes from and what to run, then YAML."""

import os
import textwrap
from pathlib import Path

import yaml

from jaxlean.config import build
from jaxlean.convert.convert import Conversion, nested
from jaxlean.errors import ConfigError
from jaxlean.redact import hidden

_WIDTH = 118


def text(found: Conversion, output: Path | None = None) -> str:
    """The file's text; what it holds is a config that `jaxlean.config.load` takes.

    Args:
        found: as of `convert`.
        output: where it will lie.
    """
    file = str(output) if output is not None else "CONFIG.yaml"
    wanted = [] if found.config.model.path else ["model.path=MODEL"]
    wanted += [] if found.config.data.train else ["data.train=FILE"]
    lost = [line.key for line in found.lines if line.outcome.kind in ("missing", "unknown")]
    comments = [
        " ".join(["jaxlean finetune", file, *wanted]),
        f"Made by jaxlean convert of {found.file} ({found.format.title}). Before it is run: jaxlean plan {file}",
        *_folded("Without counterpart: " + ", ".join(lost) if lost else ""),
    ]
    body = yaml.safe_dump(nested(found.settings), sort_keys=False, allow_unicode=True, width=_WIDTH)
    assert build(yaml.safe_load(body)) == found.config, "what is written is what was checked"
    return "".join(f"# {line}\n" for line in comments) + body


def _folded(line: str) -> list[str]:
    """A comment in lines of the usual width."""
    return textwrap.wrap(hidden(line), _WIDTH - 2, break_long_words=False)


def check_output(output: Path, file: Path, *, overwrite: bool) -> None:
    """Refuse a place that is not to be written. Raises: ConfigError."""
    if output.is_dir():
        raise ConfigError("the output is a folder", where=output, fix="--output names a file")
    if output.exists() and file.exists() and output.samefile(file):
        raise ConfigError("the output is the file that is converted", where=output, fix="--output names another file")
    if os.path.lexists(output) and not overwrite:
        raise ConfigError(
            "the output is there already", where=output, fix="--overwrite replaces it, --output names another file"
        )


def write(found: Conversion, output: Path) -> None:
    """Write the file whole, or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    part = output.with_name(f".{output.name}.new")
    try:
        part.write_text(text(found, output), encoding="utf-8")
        os.replace(part, output)
    except OSError as error:
        raise ConfigError("the output cannot be written", where=output, got=error) from None
    finally:
        part.unlink(missing_ok=True)
