"""Verbs that turn what was trained into what is served, or trained on."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxlean.cli.app import SHRINK, Config, Overrides, app, check_dtype, load_config


@app.command(rich_help_panel=SHRINK)
def merge(
    adapter: Annotated[Path, typer.Argument(help="PEFT adapter folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write the merged model to.")],
    base: Annotated[str | None, typer.Option(help="Base model; default: the one the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto: as the base.")] = "auto",
) -> None:
    """Fold an adapter into its base and write a plain Hugging Face model."""
    check_dtype(dtype)
    from jaxlean.run.merge import merge

    merge(adapter, output, base=base, dtype=dtype)
    typer.echo(f"merged model: {output}")


@app.command(rich_help_panel=SHRINK)
def average(
    adapters: Annotated[list[Path], typer.Argument(help="PEFT adapter folders, or output_dirs of finished runs.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the averaged adapter to.")],
    weights: Annotated[
        str | None,
        typer.Option(help="How much each counts: 3,1,2; or tokens: what each run trained on. Default: alike."),
    ] = None,
    method: Annotated[
        Literal["exact", "plain"],
        typer.Option(help="exact: the mean of what they add, re-factorised. plain: that of each matrix by itself."),
    ] = "exact",
    rank: Annotated[
        int | None, typer.Option(min=1, help="exact: cut to this rank. Default: the least that loses nothing.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base that the result names; default: the first adapter's.")] = None,
) -> None:
    """Average adapters of parties that cannot share their data (FedAvg); the base is not needed."""
    from jaxlean.run.average import average_adapters

    average_adapters(adapters, output, weights=weights, method=method, rank=rank, base=base)
    typer.echo(f"averaged adapter: {output}")


@app.command(rich_help_panel=SHRINK)
def prune(
    config: Config,
    overrides: Overrides = None,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write the pruned model to.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder, merged into the base before.")] = None,
    sensitivity: Annotated[
        Path | None, typer.Option(help="Draw here what each layer would suffer from being pruned alone (.png).")
    ] = None,
) -> None:
    """Make a model smaller: zeros in its matrices, or fewer neurons, heads and layers (prune: in the config)."""
    settings = load_config(config, overrides)
    from jaxlean.run.prune import prune

    prune(settings, output=output, adapter=adapter, sensitivity=sensitivity)


@app.command(rich_help_panel=SHRINK)
def quantize(
    config: Config,
    overrides: Overrides = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the quantized model to.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder, folded in first.")] = None,
) -> None:
    """Hold a trained model in 8 or 4 bits, as vLLM and transformers load it, and measure what that cost."""
    settings = load_config(config, overrides)
    from jaxlean.run.quantize import quantize_model

    quantize_model(settings, output, adapter=adapter)


@app.command(rich_help_panel=SHRINK)
def export(
    run: Annotated[Path, typer.Argument(help="output_dir of a finished run.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value of its config, e.g. quantize.method=awq")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", "-f", help="peft, hf, w8a8, w8a16, w4a16 (compressed-tensors) or stablehlo.")
    ] = "hf",
    length: Annotated[int | None, typer.Option(help="stablehlo: tokens of a row. Default: 128.")] = None,
) -> None:
    """Write what a run trained as it is served: adapter, whole model, in fewer bits, or a program; with a card."""
    from jaxlean.run.export import export

    export(run, output, form, overrides, length=length)
