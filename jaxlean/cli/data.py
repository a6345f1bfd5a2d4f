"""Verbs that look at data and choose among it."""

from pathlib import Path
from typing import Annotated

import typer

from jaxlean.cli.app import DATA, Config, Overrides, app, load_config


@app.command(rich_help_panel=DATA)
def inspect(
    config: Config,
    overrides: Overrides = None,
    examples: Annotated[int, typer.Option("--examples", "-n", min=0, help="Rows to show.")] = 3,
) -> None:
    """Show what will be learned: rendered rows with the trained tokens marked, lengths, what packing saves."""
    settings = load_config(config, overrides)
    from jaxlean.run.inspect import inspect

    inspect(settings, num_examples=examples)


@app.command(rich_help_panel=DATA)
def curate(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in output_dir after what is done.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in output_dir.")] = False,
) -> None:
    """Leave out what teaches nothing: duplicates, broken rows, leaks; write a smaller dataset and a report."""
    settings = load_config(config, overrides)
    from jaxlean.curate.curate import curate

    curate(settings, resume=resume, overwrite=overwrite)
    typer.echo(f"curated data: {settings.output_dir}")


@app.command(rich_help_panel=DATA)
def select(
    config: Config,
    overrides: Overrides = None,
    *,
    pool: Annotated[Path, typer.Option(help="File with the unlabelled texts.")],
    num: Annotated[int, typer.Option("--num", "-n", help="Rows to choose.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for annotators: .csv or .jsonl.")],
    strategy: Annotated[
        str,
        typer.Option(
            help="auto, random; by vectors: typical, k_center; by a trained model: least_confidence, margin, entropy, "
            "bald, uncertain_clusters."
        ),
    ] = "auto",
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder, trained on what has labels.")] = None,
    labelled: Annotated[Path | None, typer.Option(help="File of what has labels; default: data.train.")] = None,
    passes: Annotated[int, typer.Option(help="Draws of dropout, for bald.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Default: the config's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output, if it is there already.")] = False,
) -> None:
    """Choose the rows of an unlabelled pool that are most worth a label, and write them for annotators."""
    settings = load_config(config, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    from jaxlean.curate.select import select

    how = {"strategy": strategy, "adapter": adapter, "labelled": labelled, "passes": passes, "overwrite": overwrite}
    typer.echo(select(settings, pool, output, num, **how))  # type: ignore[arg-type]
