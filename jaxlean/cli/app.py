"""What all verbs have in common: the application, its panels, the arguments that many take, and reading a config.

A verb reads its arguments and makes one call. jax, transformers and the rest are imported by the verb that needs them,
so that `--help` answers at once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxlean import __version__
from jaxlean.errors import ConfigError

if TYPE_CHECKING:
    from jaxlean.config import RunConfig

app = typer.Typer(
    name="jaxlean", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Training made cheap: fine-tune open-weight models with JAX.",
)  # fmt: skip

# The panels of --help.
TRAIN, COST, USE = "Train", "What it costs", "Use a model"
SHRINK, DATA, CONFIGS, ABOUT = "Smaller, and served", "Data", "Configs", "About jaxlean"

Config = Annotated[Path, typer.Argument(help="YAML file; configs/ holds examples.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value ..., e.g. model.path=org/name train.learning_rate=1e-4")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in output_dir.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")]


def load_config(config: Path, overrides: list[str] | None) -> "RunConfig":
    """A YAML file with `section.key=value` overrides. Raises: ConfigError."""
    from jaxlean.config import load

    try:
        return load(config, overrides)
    except ConfigError as error:
        from jaxlean.convert import hint

        found = hint(config)
        if found is None:
            raise
        raise ConfigError(error.what, where=error.where, got=error.got, wanted=error.wanted, fix=found) from None


def load_any_config(file: Path, overrides: list[str] | None) -> tuple["RunConfig", str]:
    """A config of ours, or another project's made into one, with overrides; and what to say of that.

    Raises:
        ConfigError: it is neither, or cannot be one.
    """
    from jaxlean.config import load, of_values
    from jaxlean.convert.convert import convert, nested
    from jaxlean.convert.detect import is_ours
    from jaxlean.convert.source import read

    ours = is_ours(read(file))
    try:
        return load(file, overrides), ""
    except ConfigError:
        if ours:
            raise
    found = convert(file)
    lost = [line.key for line in found.lines if line.outcome.kind in ("missing", "unknown")]
    told = f"{file}: {found.format.title}, converted (jaxlean convert {file} -o CONFIG.yaml says how)"
    told += f"; without counterpart: {', '.join(lost)}" if lost else ""
    return of_values(nested(found.settings), overrides, file=file), told


def check_dtype(name: str) -> None:
    """Of `--dtype`. Raises: ConfigError."""
    if name not in ("auto", "float32", "bfloat16"):
        raise ConfigError("--dtype is unknown", got=name, wanted="auto, float32 or bfloat16")


@contextmanager
def without_compilers_chatter() -> Iterator[None]:
    """For the start of jax: the CUDA plugin tells stderr, past all settings, that this machine has no GPU."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"jaxlean {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # transformers says at import that there is no PyTorch; that is how we want it
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
