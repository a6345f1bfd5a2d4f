"""Verbs that say what jaxlean knows and where it runs."""

from jaxlean.cli.app import ABOUT, app


@app.command(rich_help_panel=ABOUT)
def models() -> None:
    """List the model families that load, and what each can be trained for."""
    from jaxlean.run.models import print_models

    print_models()


@app.command(rich_help_panel=ABOUT)
def env() -> None:
    """Print versions and devices, for bug reports."""
    from jaxlean.run.environment import print_environment

    print_environment()
