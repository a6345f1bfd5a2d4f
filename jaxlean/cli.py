"""The verbs: each reads its arguments, makes one call, and turns a `UserError` into a message and exit code 2.

jax, transformers and the rest are imported by the verb that needs them, so that `--help` answers at once.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxlean import __version__
from jaxlean.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, ConfigError, Preempted, RunError, UserError
from jaxlean.redact import guard, hidden

if TYPE_CHECKING:
    from jaxlean.config import RunConfig

app = typer.Typer(
    name="jaxlean", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Training made cheap: fine-tune open-weight models with JAX.",
)  # fmt: skip

Config = Annotated[Path, typer.Argument(help="YAML file; configs/ holds examples.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value ..., e.g. model.path=org/name train.learning_rate=1e-4")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in output_dir.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")]


@app.command()
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
    _finetune(_load(config, overrides), resume, overwrite, plan)


def _finetune(settings: "RunConfig", resume: bool, overwrite: bool, plan: Path | None = None) -> None:
    from jaxlean.run.finetune import finetune
    from jaxlean.run.peers import join

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


@app.command()
def pretrain(config: Config, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Train a model from zero: model.architecture and model.tokenizer instead of model.path."""
    settings = _load(config, overrides)
    if settings.model.architecture is None:
        raise ConfigError("model.architecture is not set", where=config, fix="configs/pretrain_tiny.yaml shows one")
    _finetune(settings, resume, overwrite)


@app.command()
def distill(config: Config, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Train a student on what a teacher expects: distill.teacher, and a student in model.path or distill.student."""
    settings = _load(config, overrides)
    if settings.distill is None:
        raise ConfigError("distill.teacher is not set", where=config, fix="configs/quickstart_distill.yaml shows one")
    _finetune(settings, resume, overwrite)


@app.command()
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
        evaluate_tasks(_load(config, overrides), names, **how)  # type: ignore[arg-type]
        return
    if limit is not None or include_path is not None:
        raise ConfigError("--limit and --include-path are for --tasks", fix="eval.max_examples=N limits held-out rows")
    settings = _load(config, [*(overrides or []), *([] if shots is None else [f"eval.shots={shots}"])])
    if shots is not None:
        from jaxlean.run.few_shot import evaluate_few_shot

        evaluate_few_shot(settings, adapter=adapter, answers=answers)
        return
    from jaxlean.run.evaluate import evaluate

    evaluate(settings, adapter=adapter, answers=answers)


@app.command()
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
    _check_dtype(dtype)
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


@app.command()
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
    settings = _load(config, overrides)
    from jaxlean.run.predictions import predict

    typer.echo(f"{predict(settings, data, output, adapter=adapter):,} rows: {output}")


@app.command()
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
    settings = _load(config, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    from jaxlean.curate.select import select

    how = {"strategy": strategy, "adapter": adapter, "labelled": labelled, "passes": passes, "overwrite": overwrite}
    typer.echo(select(settings, pool, output, num, **how))  # type: ignore[arg-type]


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="PEFT adapter folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write the merged model to.")],
    base: Annotated[str | None, typer.Option(help="Base model; default: the one the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto: as the base.")] = "auto",
) -> None:
    """Fold an adapter into its base and write a plain Hugging Face model."""
    _check_dtype(dtype)
    from jaxlean.run.merge import merge

    merge(adapter, output, base=base, dtype=dtype)
    typer.echo(f"merged model: {output}")


@app.command()
def quantize(
    config: Config,
    overrides: Overrides = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the quantized model to.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder, folded in first.")] = None,
) -> None:
    """Hold a trained model in 8 or 4 bits, as vLLM and transformers load it, and measure what that cost."""
    settings = _load(config, overrides)
    from jaxlean.run.quantize import quantize_model

    quantize_model(settings, output, adapter=adapter)


@app.command()
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


@app.command()
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
    settings = _load(config, overrides)
    from jaxlean.run.prune import prune

    prune(settings, output=output, adapter=adapter, sensitivity=sensitivity)


@app.command()
def inspect(
    config: Config,
    overrides: Overrides = None,
    examples: Annotated[int, typer.Option("--examples", "-n", min=0, help="Rows to show.")] = 3,
) -> None:
    """Show what will be learned: rendered rows with the trained tokens marked, lengths, what packing saves."""
    settings = _load(config, overrides)
    from jaxlean.run.inspect import inspect

    inspect(settings, num_examples=examples)


@app.command()
def curate(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in output_dir after what is done.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in output_dir.")] = False,
) -> None:
    """Leave out what teaches nothing: duplicates, broken rows, leaks; write a smaller dataset and a report."""
    settings = _load(config, overrides)
    from jaxlean.curate.curate import curate

    curate(settings, resume=resume, overwrite=overwrite)
    typer.echo(f"curated data: {settings.output_dir}")


@app.command()
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
    settings = _load(config, overrides)
    if targets is not None:
        from rich.console import Console

        with _without_compilers_chatter():
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


@app.command()
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
    settings = _load(config, overrides)
    with _without_compilers_chatter():
        import jax

        from jaxlean.plan.show import plan_and_print

        jax.devices("cpu")

    names = targets.split(",") if targets is not None else None
    plan_and_print(
        settings, names, deadline_hours=deadline_hours, max_usd=max_usd, json=json, every=every, parallel=parallel,
        limit_seconds=limit,
    )  # fmt: skip


@contextmanager
def _without_compilers_chatter() -> Iterator[None]:
    """For the start of jax: the CUDA plugin tells stderr, past all settings, that this machine has no GPU."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@app.command()
def models() -> None:
    """List the model families that load, and what each can be trained for."""
    from jaxlean.run.models import print_models

    print_models()


@app.command()
def env() -> None:
    """Print versions and devices, for bug reports."""
    from jaxlean.run.environment import print_environment

    print_environment()


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


def _check_dtype(name: str) -> None:
    if name not in ("auto", "float32", "bfloat16"):
        raise ConfigError("--dtype is unknown", got=name, wanted="auto, float32 or bfloat16")


def _load(config: Path, overrides: list[str] | None) -> "RunConfig":
    from jaxlean.config import load

    return load(config, overrides)


def main() -> None:
    """Entry point.

    Exit codes: 0 done, 2 something the user can mend, 69 another process of the run is lost (`run.watch`), 75 preempted
    (see `Preempted.saved`).
    """
    guard()
    try:
        typer.main.get_command(app)()  # not `app()`, which puts a hook for tracebacks of its own in the place of ours
    except UserError as error:
        _fail(error)
    except Preempted as preempted:
        nothing = "before there was anything to save; the same command starts again"
        print(f"preempted ({preempted}): {preempted.goes_on if preempted.saved else nothing}", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except Exception as error:
        if not _no_space(error):
            raise
        where = getattr(error, "filename", None)
        fix = "make room; a run goes on from its last checkpoint with --resume"
        _fail(RunError("no disk space", where=where, got=error, fix=fix))


def _no_space(error: Exception) -> bool:
    # safetensors and tensorstore write from other languages and raise errors of their own with the system's words
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or any(os.strerror(code) in str(error) for code in codes)


def _fail(error: UserError) -> None:
    print(hidden(f"error: {error}"), file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
