"""Verbs that make and explain configs."""

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
