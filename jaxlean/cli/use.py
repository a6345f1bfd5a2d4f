"""Verbs that use a model: measure it, complete prompts, label texts."""

from pathlib import Path
from typing import Annotated

import typer

from jaxlean.cli.app import USE, Config, Overrides, app, check_dtype, load_config
from jaxlean.errors import ConfigError


@app.command(rich_help_panel=USE)
def evaluate(
    config: Annotated[Path | None, typer.Argument(help="YAML file; configs/ holds examples.")] = None,
    overrides: Overrides = None,
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder; default: the base alone.")] = None,
    answers: Annotated[Path | None, typer.Option(help="JSONL file to write generated and wanted texts to.")] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="Show the model so many training rows (classify: of each label) as examples."),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(help="output_dir of a run with eval.mode: async; score its snapshots until it is finished."),
    ] = None,
    parent: Annotated[int | None, typer.Option(help="--watch: a process that this one ends with.")] = None,
    nice: Annotated[int, typer.Option(min=0, max=19, help="--watch: yield so much to other processes.")] = 0,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, by commas, instead: arc_easy,hellaswag")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="--tasks: rows of each; default: all.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="--tasks: folder with tasks of your own (YAML).")] = None,
) -> None:
    """Measure loss, perplexity, bits per byte and (eval.exact_match=true) exact match on the held-out data."""
    if watch is not None:
        if any(given is not None for given in (config, adapter, answers, shots, tasks, limit, include_path)):
            raise ConfigError("--watch takes its config from the run's folder", fix="--watch RUN_DIR alone")
        from jaxlean.run.async_evaluation import watch as watch_run

        watch_run(watch, parent=parent, nice=nice)
        return
    if config is None:
        raise ConfigError("jaxlean evaluate needs a config file, or --watch RUN_DIR", fix="configs/ holds examples")
    if tasks is not None:
        if answers is not None:
            raise ConfigError("--tasks writes no answers", fix="leave out --answers")
        from jaxlean.run.harness import evaluate_tasks

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        how = {"adapter": adapter, "limit": limit, "shots": shots, "include": include_path}
        evaluate_tasks(load_config(config, overrides), names, **how)  # type: ignore[arg-type]
        return
    if limit is not None or include_path is not None:
        raise ConfigError("--limit and --include-path are for --tasks", fix="eval.max_examples=N limits held-out rows")
    settings = load_config(config, [*(overrides or []), *([] if shots is None else [f"eval.shots={shots}"])])
    if shots is not None:
        from jaxlean.run.few_shot import evaluate_few_shot

        evaluate_few_shot(settings, adapter=adapter, answers=answers)
        return
    from jaxlean.run.evaluate import evaluate

    evaluate(settings, adapter=adapter, answers=answers)


@app.command(rich_help_panel=USE)
def generate(
    model: Annotated[str, typer.Argument(help="Folder or Hugging Face id.")],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="What to complete; may be given several times.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder.")] = None,
    system: Annotated[str | None, typer.Option(help="System message, where the model has a chat template.")] = None,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Use the tokenizer's chat template, if any.")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest tokens that hold this mass.")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    kv_cache_dtype: Annotated[str, typer.Option(help="Keys and values of earlier tokens: auto or int8.")] = "auto",
) -> None:
    """Complete prompts with a model, with an adapter if you have one."""
    check_dtype(dtype)
    if kv_cache_dtype not in ("auto", "int8"):
        raise ConfigError("--kv-cache-dtype is unknown", got=kv_cache_dtype, wanted="auto or int8")
    from jaxlean.hub.adapter import trained_over
    from jaxlean.hub.load import load
    from jaxlean.run.generate import Sampling, encode_prompt, generate, stop_ids
    from jaxlean.run.merge import load_adapted
    from jaxlean.xla.compile import use_cache

    use_cache()
    sampling = Sampling(temperature, top_k, top_p, seed)
    form = trained_over(adapter) if adapter is not None else {}
    loaded = load(model, dtype, task="generate", **form)  # type: ignore[arg-type]
    if adapter is not None:
        loaded = load_adapted(loaded, adapter)
    prompts = [encode_prompt(loaded, text, system=system, chat=chat) for text in prompt]
    new = generate(
        loaded, prompts, max_new_tokens=max_new_tokens, stop=stop_ids(loaded), sampling=sampling,
        kv_cache_dtype=kv_cache_dtype,  # type: ignore[arg-type]
    )  # fmt: skip
    for ids in new:
        typer.echo(loaded.tokenizer.decode(ids, skip_special_tokens=True))


@app.command(rich_help_panel=USE)
def predict(
    config: Config,
    overrides: Overrides = None,
    *,
    data: Annotated[Path, typer.Option("--input", "-i", help="File with the texts, in the column of the data.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .jsonl, the rows with labels; embed: .npy.")
    ],
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder; default: the model alone.")] = None,
) -> None:
    """Write the labels (task=classify, tag) or vectors (task=embed) of the rows of a file."""
    settings = load_config(config, overrides)
    from jaxlean.run.predictions import predict

    typer.echo(f"{predict(settings, data, output, adapter=adapter):,} rows: {output}")
