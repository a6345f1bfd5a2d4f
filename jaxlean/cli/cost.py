"""Verbs that say what a job costs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from jaxlean.cli.app import (
    COST,
    Config,
    Overrides,
    app,
    load_any_config,
    load_config,
    without_compilers_chatter,
)


@app.command(rich_help_panel=COST)
def plan(
    config: Config,
    overrides: Overrides = None,
    targets: Annotated[
        str | None, typer.Option(help="Devices, by commas: h100-80gb:8,v5e:2x4,cpu. Names: configs/hardware.yaml.")
    ] = None,
    deadline_hours: Annotated[float | None, typer.Option(min=0, help="Slower ones are ranked last.")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Dearer ones are ranked last.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the plan here: for programs, and finetune --plan.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every candidate that was compiled.")] = False,
    parallel: Annotated[int | None, typer.Option(min=1, help="Compilers at a time; default: one a core.")] = None,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that one compilation may take.")] = 300,
) -> None:
    """Say what the job would cost on hardware that is not here: compiled for each target, cheapest first."""
    # its programs are for other machines: it looks for no hardware here, and neither do its compilers
    os.environ.update(JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
    settings = load_config(config, overrides)
    with without_compilers_chatter():
        import jax

        from jaxlean.plan.show import plan_and_print

        jax.devices("cpu")

    names = targets.split(",") if targets is not None else None
    plan_and_print(
        settings, names, deadline_hours=deadline_hours, max_usd=max_usd, json=json, every=every, parallel=parallel,
        limit_seconds=limit,
    )  # fmt: skip


@app.command(rich_help_panel=COST)
def audit(
    config: Annotated[Path, typer.Argument(help="YAML file; also one of Axolotl, LLaMA-Factory, TRL or Unsloth.")],
    overrides: Overrides = None,
    targets: Annotated[
        str | None, typer.Option(help="Devices, by commas, as of jaxlean plan; default: this machine.")
    ] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Compilers at a time; default: one a core.")] = None,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that one compilation may take.")] = 300,
) -> None:
    """Say which cuts a config leaves on the table: its step compiled as it is and with each, ranked by dollars."""
    # its programs are compiled by other processes, for other machines: it looks for no hardware itself
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    settings, told = load_any_config(config, overrides)
    if told:
        typer.echo(told)
    with without_compilers_chatter():
        from jaxlean.run.devices import leave

        leave()
        import jax

        from jaxlean.audit.show import audit_and_print

        jax.devices("cpu")
    # what is to be added, is added to the converted file
    file = Path("CONFIG.yaml") if told else config
    audit_and_print(settings, targets, file=file, limit_seconds=limit, parallel=parallel)


@app.command(rich_help_panel=COST)
def ledger(
    by: Annotated[str | None, typer.Option(help="Sum by project, model, month, person, device, status or tag.")] = None,
    since: Annotated[str | None, typer.Option(help="Date, as 2026-01-31: what began earlier is left out.")] = None,
    project: Annotated[str | None, typer.Option(help="Only of this project (cost.project).")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag (cost.tags).")] = None,
    chargeback: Annotated[bool, typer.Option("--chargeback", help="Who pays what: by project and month.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write it here as CSV instead; - is standard output.")] = None,
    file: Annotated[Path | None, typer.Option(help="The ledger (cost.ledger); default: yours.")] = None,
) -> None:
    """What all runs have cost so far: dollars, energy, hours, by who pays."""
    from jaxlean.cost.ledger import default_file
    from jaxlean.run.ledger import show_ledger

    where = {name: value for name, value in (("project", project), ("tag", tag)) if value is not None}
    show_ledger(file or default_file(), by=by, since=since, where=where, bill=chargeback, to=csv)


@app.command(rich_help_panel=COST)
def receipt(
    run: Annotated[Path, typer.Argument(help="output_dir of a finished run.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of three steps that each program is timed by.")] = 3,
    calibrate: Annotated[
        bool, typer.Option("--calibrate/--no-calibrate", help="Run steps to time them; else compile alone.")
    ] = True,
) -> None:
    """Say what each cut of a run saved against the run without it: compiled and measured, on its own data."""
    from jaxlean.receipt.receipt import receipt

    receipt(run, rounds=rounds, measure=calibrate)


@app.command(rich_help_panel=COST)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="output_dir of a run; of several one page.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Show runs in one HTML file that opens offline: losses, evaluations, cost, memory, what each cut saved."""
    from jaxlean.report.report import report

    typer.echo(report(runs, output))
