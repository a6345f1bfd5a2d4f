"""Verbs that make and explain configs."""

from pathlib import Path
from typing import Annotated

import typer

from jaxlean.cli.app import CONFIGS, app
from jaxlean.errors import ConfigError


@app.command(rich_help_panel=CONFIGS)
def config(
    key: Annotated[str | None, typer.Argument(help="A section or a key: train, train.remat; default: all.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema, for editors.")] = False,
) -> None:
    """Print what can be set: type, default, other names and meaning of every key."""
    if schema:
        from jaxlean.config.schema import schema_text

        if key is not None:
            raise ConfigError("--schema is of all keys", got=key, fix="leave out one of them")
        typer.echo(schema_text(), nl=False)
        return
    from jaxlean.config.show import print_keys

    print_keys(key)


@app.command(rich_help_panel=CONFIGS)
def convert(
    file: Annotated[Path | None, typer.Argument(help="YAML or JSON of Axolotl, LLaMA-Factory, TRL or Unsloth.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the config here; default: to standard output.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    of: Annotated[
        str | None, typer.Option("--from", help="axolotl, llama-factory, trl or unsloth; default: told by the keys.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Print the table of keys, as Markdown.")] = False,
) -> None:
    """Make a config of another project's, and say of each of its keys what became of it."""
    if table:
        from jaxlean.convert.migrating import markdown

        if file is not None:
            raise ConfigError("--table converts no file", got=file, fix="leave out one of them")
        typer.echo(markdown(), nl=False)
        return
    if file is None:
        raise ConfigError("no file to convert", fix="jaxlean convert axolotl.yaml --output CONFIG.yaml")
    from rich.console import Console

    from jaxlean.convert.convert import convert
    from jaxlean.convert.report import print_report
    from jaxlean.convert.write import check_output, text, write

    if output is not None:
        check_output(output, file, overwrite=overwrite)
    found = convert(file, of=of)
    if output is None:
        typer.echo(text(found), nl=False)
    else:
        write(found, output)
    print_report(found, Console(stderr=True))
    if output is not None:
        typer.echo(f"written: {output}", err=True)
