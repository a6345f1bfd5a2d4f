"""One training run, top to bottom: config, mesh, model, data, adapt, step, resume, loop, evaluate, write."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import RunConfig
from jaxlean.cost.memory import peak_memory_bytes
from jaxlean.cost.price import lookup
from jaxlean.data.loader import train_batches
from jaxlean.errors import ConfigError, Preempted, UserError
from jaxlean.hub.adapter import write_adapter
from jaxlean.hub.load import Model, initial, load
from jaxlean.hub.write import write_model
from jaxlean.models.decoder import ACTIVATIONS
from jaxlean.models.linear import Dropout
from jaxlean.run.checkpoint import Checkpoints
from jaxlean.run.environment import versions
from jaxlean.run.evaluate import Evaluator
from jaxlean.run.folder import claim, check_space
from jaxlean.run.meter import Meter
from jaxlean.run.metrics import Metrics, check_installed
from jaxlean.run.preemption import Preemption
from jaxlean.run.progress import Progress
from jaxlean.run.summary import final_table, write_summary
from jaxlean.train.optimizer import optimizer, schedule
from jaxlean.train.step import Apply, Batch, TrainState, init_state, make_step
from jaxlean.xla.mesh import batch_sharding, make_mesh, num_batch_shards, replicated
from jaxlean.xla.remat import remat


def finetune(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train as the config says.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in `output_dir`.
        overwrite: remove what an earlier run left in `output_dir`.

    Returns:
        what `summary.json` holds (`jaxlean.run.summary.Summary`).

    Raises:
        UserError: what the user can mend.
        Preempted: SIGTERM or Ctrl-C came; the state is saved.
    """
    with Preemption() as preemption:
        return _finetune(config, resume, overwrite, preemption)


def _finetune(config: RunConfig, resume: bool, overwrite: bool, preemption: Preemption) -> dict[str, Any]:
    started = time.perf_counter()
    say = _printer()

    # ---- config: nothing is touched before everything that can be known to be wrong is known
    if config.data.train is None:
        raise ConfigError("data.train is not set", fix="data.train=FILE, or a `data:` section in the config")
    check_installed(config.report)
    output_dir = Path(config.output_dir)
    claim(output_dir, config, resume=resume, overwrite=overwrite, dry=True)

    # ---- mesh
    mesh = make_mesh(config.mesh)
    price = lookup(mesh.devices.flat[0].device_kind, mesh.size, config.cost)

    # ---- model
    model = _model(config, mesh)
    tokenizer = model.tokenizer
    if config.model.chat_template is not None:
        tokenizer.chat_template = Path(config.model.chat_template).read_text(encoding="utf-8")

    # ---- data
    rows = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps * num_batch_shards(mesh)
    batches = train_batches(config, tokenizer, rows_per_step=rows, vocab_size=model.config.vocab_size)
    num_steps = batches.num_steps
    say(f"data: {batches.stats}\nsteps: {num_steps:,} of {rows} x {batches.length} tokens")

    # ---- adapt
    params, trains = _adapt(config, model)
    model = model.with_params(params)
    trainable, frozen = tree.split(params, trains)
    start_adapter = jax.device_get(trainable) if config.lora and config.lora.init_lora_weights == "pissa" else None
    num_params, num_trainable = _count(params), _count(trainable)
    say(f"model: {model.family.model_type}, {num_params:,} parameters in {model.dtype.name}, {num_trainable:,} train")

    # ---- step
    apply = _apply(config, model)
    transform = optimizer(config.train, num_steps, trainable, ratio=lora.learning_rate_ratios(config.lora))
    rate = schedule(config.train, num_steps)
    state = _place(trainable, transform, mesh)
    step = make_step(apply, transform, seed=config.seed, shardings=jax.tree.map(lambda x: x.sharding, state))
    evaluator = (
        Evaluator(config, tokenizer, _apply(config, model, training=False), mesh, vocab_size=model.config.vocab_size)
        if config.data.eval or config.data.eval_fraction
        else None
    )
    check_space(output_dir, sum(x.nbytes for x in jax.tree.leaves(state)), config.train.save_total_limit)

    # ---- resume
    claim(output_dir, config, resume=resume, overwrite=overwrite)
    checkpoints = Checkpoints(output_dir / "checkpoints", keep=config.train.save_total_limit)
    saved = checkpoints.latest(state._asdict()) if resume else None
    meter = Meter(price, clock_start=started)
    if saved is not None:
        state = TrainState(**saved.arrays)
        batches.restore(saved.state["data"])
        meter.restore(saved.state["meter"])
        say(f"resumed at step {saved.step} of {num_steps}")
    elif resume:
        say("no checkpoint to resume from: starting at step 0")
    done = saved.step if saved is not None else 0
    metrics = Metrics(output_dir, config.report, resume_step=saved.step if saved is not None else None, config=config.model_dump())
    progress = Progress(num_steps, start_step=done, bar=config.report.progress)

    def save(at: int, *, wait: bool = False) -> None:
        meter.check(at)
        checkpoints.save(at, state._asdict(), {"data": batches.state(), "meter": meter.state()}, wait=wait)

    try:
        # ---- evaluate before
        if evaluator is not None and config.eval.before and meter.eval_before is None:
            meter.eval_before = evaluator(model, state.trainable, frozen)
            metrics.log(0, {f"eval_{k}": v for k, v in meter.eval_before.items()})

        # ---- loop
        sharding = batch_sharding(mesh, leading=1)
        save_steps = config.train.save_steps or max(num_steps // 10, 1)
        compiled = None
        meter.start_training()
        with progress:
            for numbers in batches:
                with preemption.deferred():
                    batch = _on_device(numbers, config.train.gradient_accumulation_steps, sharding)
                    if compiled is None:
                        with meter.compiling():
                            compiled = step.lower(state, frozen, batch).compile()
                    state, measured = compiled(state, frozen, batch)
                    done += 1
                    meter.add(done, measured)
                    progress.update(done)
                    if done % config.train.logging_steps == 0 or done == num_steps:
                        meter.mark(done)
                    for line in meter.ready(wait=done == num_steps):
                        line["learning_rate"] = float(rate(line["step"] - 1))
                        metrics.log(line["step"], line)
                        progress.report(**Meter.shown(line))
                    if done % save_steps == 0 or done == num_steps:
                        save(done)
                if evaluator and config.eval.eval_steps and done % config.eval.eval_steps == 0 and done < num_steps:
                    with meter.paused():
                        found = evaluator.loss(state.trainable, frozen)
                    metrics.log(done, {f"eval_{k}": v for k, v in found.items()})
                    progress.message(f"step {done}: held-out loss {found['loss']:.4f}")
            meter.stop_training()

        # ---- evaluate after
        if evaluator is not None:
            meter.eval_after = evaluator(model, state.trainable, frozen)
            metrics.log(done, {f"eval_{k}": v for k, v in meter.eval_after.items()})

        # ---- write
        checkpoints.close()
        result = _write(config, model, output_dir, state.trainable, frozen, start_adapter)
    except Preempted:
        with preemption.deferred():  # a second signal waits until everything is on disk
            meter.stop_training()
            save(done, wait=True)
            _summarise(output_dir, "preempted", done, meter, mesh, num_params, num_trainable)
            checkpoints.close()
        raise
    except BaseException:
        meter.stop_training()
        with contextlib.suppress(UserError):  # a full disk, say: the first error is the one to show
            _summarise(output_dir, "failed", done, meter, mesh, num_params, num_trainable)
            checkpoints.close()
        raise
    finally:
        metrics.close()
    summary = _summarise(output_dir, "completed", done, meter, mesh, num_params, num_trainable)
    final_table(summary, adapter=result)
    return summary


def _model(config: RunConfig, mesh: jax.sharding.Mesh) -> Model:
    """The base: from files, or from zero where the config has an architecture instead of a path."""
    wanted = config.model
    if wanted.architecture is not None:
        if wanted.path is not None or config.lora is not None:
            raise ConfigError("model.architecture starts from zero", fix="leave out model.path and set lora: null")
        if wanted.tokenizer is None:
            raise ConfigError("pre-training needs a tokenizer", where="model.tokenizer")
        return initial(wanted.architecture, wanted.dtype, mesh, seed=config.seed, tokenizer=wanted.tokenizer)
    if wanted.path is None:
        raise ConfigError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    all_train = config.lora is None
    return load(
        wanted.path, wanted.dtype, mesh, revision=wanted.revision, tokenizer=wanted.tokenizer,
        trains=lambda path: all_train,
    )  # fmt: skip


def _adapt(config: RunConfig, model: Model) -> tuple[tree.Tree, Callable[[str], bool]]:
    """(the parameters, with adapters if the config says so; path -> whether it trains)."""
    if config.lora is not None:
        names = {ours: theirs for ours, theirs in model.family.modules.items()}
        modules = lora.targets(model.params, config.lora.target_modules, names)
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        return lora.add(model.params, modules, config.lora, key), lora.is_adapter
    if config.train.trainable is None:
        return model.params, lambda path: True
    rules = [(pattern, True) for pattern in config.train.trainable]
    chosen = tree.match(rules, tree.flatten(model.params), what="train.trainable", default=False)
    return model.params, chosen.__getitem__


def _apply(config: RunConfig, model: Model, *, training: bool = True) -> Apply:
    """The model as a function of its parameters and a batch."""
    graph = model.graph
    rate = config.lora.lora_dropout if config.lora is not None and training else 0.0
    wrap = remat(config.train.remat, ACTIVATIONS) if training else None

    def apply(params: tree.Tree, batch: Batch, key: jax.Array) -> jax.Array:
        dropout = Dropout(rate, key) if rate else None
        return nnx.merge(graph, params)(
            batch["tokens"], positions=batch["positions"], segments=batch["segments"], dropout=dropout, wrap=wrap
        )

    return apply


def _place(trainable: tree.Tree, transform: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    """The first state on the mesh: moments where the parameters they belong to lie, all else on every device."""
    everywhere = replicated(mesh)
    shapes = jax.eval_shape(lambda t: init_state(t, transform), trainable)
    moments = optax.tree_map_params(
        transform,
        # a factored moment (adafactor) is smaller than its parameter and small enough to be everywhere
        lambda moment, parameter: parameter.sharding if moment.shape == parameter.shape else everywhere,
        shapes.optimizer,
        trainable,
        transform_non_params=lambda _: everywhere,
    )
    where = TrainState(jax.tree.map(lambda x: x.sharding, trainable), moments, everywhere, everywhere)
    # copied: the step donates its state, and the caller's tree must stay alive
    return jax.jit(lambda t: init_state(jax.tree.map(jnp.copy, t), transform), out_shardings=where)(trainable)


def _on_device(numbers: dict[str, Any], microbatches: int, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """[rows, length] on the host -> [microbatches, rows / microbatches, length] on the devices."""
    return {
        name: jax.device_put(value.reshape(microbatches, -1, value.shape[-1]), sharding)
        for name, value in numbers.items()
    }


def _write(
    config: RunConfig, model: Model, output_dir: Path, trainable: tree.Tree, frozen: tree.Tree, start: tree.Tree | None
) -> Path:
    """The result in the format others load: an adapter, or a whole model."""
    if config.lora is None:
        write_model(model.with_params(tree.merge(trainable, frozen)), output_dir / "model")
        return output_dir / "model"
    whole = tree.merge(trainable, frozen)
    adapter, _ = tree.split(whole, lambda path: ".lora_" in path)
    if start is not None:
        adapter = lora.unprincipal(adapter, start)
    write_adapter(output_dir / "adapter", model.family, adapter, config.lora, base=str(config.model.path))
    return output_dir / "adapter"


def _summarise(
    output_dir: Path, status: str, steps: int, meter: Meter, mesh: jax.sharding.Mesh, num_params: int, num_trainable: int
) -> dict[str, Any]:
    summary = {
        "status": status,
        "steps": steps,
        **meter.totals(),
        "peak_memory_bytes": peak_memory_bytes(),
        "num_params": num_params,
        "num_trainable": num_trainable,
        "device_kind": mesh.devices.flat[0].device_kind,
        "num_devices": mesh.size,
        "versions": versions(),
    }
    write_summary(output_dir / "summary.json", summary)
    return summary


def _count(params: tree.Tree) -> int:
    """Parameters; an adapter's fixed scale is a setting, not a parameter."""
    return sum(x.size for path, x in tree.flatten(params).items() if not path.endswith(".lora_scale"))


def _printer() -> Callable[[str], None]:
    from rich.console import Console

    console = Console()
    return lambda text: console.print(text, highlight=False, soft_wrap=True)
