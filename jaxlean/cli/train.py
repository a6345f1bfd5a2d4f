"""Verbs that train: one model, one from zero, a student, many trials."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxlean.cli.app import TRAIN, Config, Overrides, Overwrite, Resume, app, load_config, without_compilers_chatter
from jaxlean.errors import ConfigError

if TYPE_CHECKING:
    from jaxlean.config import RunConfig


@app.command(rich_help_panel=TRAIN)
def finetune(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    plan: Annotated[Path | None, typer.Option(help="Run as the winner of this plan (jaxlean plan --json).")] = None,
    parent: Annotated[int | None, typer.Option(hidden=True, help="A process that this one ends with.")] = None,
) -> None:
    """Fine-tune a model (LoRA by default) and measure what it gained and cost."""
    if parent is not None:
        from jaxlean.run.parent import end_with

        end_with(parent)
    _finetune(load_config(config, overrides), resume, overwrite, plan)


def _finetune(settings: "RunConfig", resume: bool, overwrite: bool, plan: Path | None = None) -> None:
    from jaxlean.run.finetune import finetune
    from jaxlean.run.peers import join

    if settings.cost.start is not None and not resume:
        from jaxlean.plan.start import wait_for_start

        wait_for_start(settings, say=typer.echo)
    with join(settings.distributed) as peers:  # before anything looks at the devices
        if plan is not None:
            from jaxlean.plan.plan import apply

            settings = apply(settings, plan)
        elif settings.mesh.auto:
            from jaxlean.plan.local import choose_mesh
            from jaxlean.run.folder import claim

            if not resume:  # now, not after minutes of compiling
                folder = Path(settings.output_dir)
                peers.first(lambda: claim(folder, settings, resume=False, overwrite=overwrite, dry=True))
            settings = choose_mesh(settings)
        finetune(settings, resume=resume, overwrite=overwrite)


@app.command(rich_help_panel=TRAIN)
def pretrain(config: Config, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Train a model from zero: model.architecture and model.tokenizer instead of model.path."""
    settings = load_config(config, overrides)
    if settings.model.architecture is None:
        raise ConfigError("model.architecture is not set", where=config, fix="configs/pretrain_tiny.yaml shows one")
    _finetune(settings, resume, overwrite)


@app.command(rich_help_panel=TRAIN)
def distill(config: Config, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Train a student on what a teacher expects: distill.teacher, and a student in model.path or distill.student."""
    settings = load_config(config, overrides)
    if settings.distill is None:
        raise ConfigError("distill.teacher is not set", where=config, fix="configs/quickstart_distill.yaml shows one")
    _finetune(settings, resume, overwrite)


@app.command(rich_help_panel=TRAIN)
def search(
    config: Config,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the search in output_dir.")] = False,
    targets: Annotated[
        str | None,
        typer.Option(help="Start nothing; say how many trials to train side by side on these: h100-80gb,v5e:1x1,cpu"),
    ] = None,
) -> None:
    """Try settings (search.space) in trials that share one program, give up the losers early, write best.yaml."""
    if targets is not None:
        if overwrite:
            raise ConfigError("--targets starts nothing, and so overwrites nothing", fix="leave out --overwrite")
        # as for plan: its programs are for other machines
        os.environ.update(JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
    settings = load_config(config, overrides)
    if targets is not None:
        from rich.console import Console

        with without_compilers_chatter():
            import jax

            from jaxlean.search.targets import advise_targets, print_advice

            jax.devices("cpu")

        names = [name.strip() for name in targets.split(",") if name.strip()]
        if not names:
            raise ConfigError("--targets names nothing", wanted="h100-80gb,v5e:1x1,cpu")
        print_advice(*advise_targets(settings, names), Console())
        return
    from jaxlean.search.search import search

    search(settings, overwrite=overwrite)
