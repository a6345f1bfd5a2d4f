"""One training run, top to bottom: config, mesh, model, data, adapt, step, resume, loop, evaluate, write."""

import contextlib
import shutil
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxlean import codec, tree
from jaxlean.adapt import lora, vocabulary
from jaxlean.config import RunConfig
from jaxlean.cost.energy import EnergyMeter
from jaxlean.cost.memory import peak_memory_bytes
from jaxlean.cost.phases import CHECKPOINT, EVALUATION, TEACHER
from jaxlean.errors import ConfigError, Preempted, UserError
from jaxlean.hub.adapter import write_adapter
from jaxlean.hub.head import label_settings
from jaxlean.hub.load import Model
from jaxlean.hub.write import write_model
from jaxlean.models.cpu import hold, release
from jaxlean.run.account import Account
from jaxlean.run.base_losses import BaseLosses
from jaxlean.run.checkpoint import Checkpoints
from jaxlean.run.data_wait import DataWait
from jaxlean.run.distill import Lessons
from jaxlean.run.environment import versions
from jaxlean.run.evaluate import evaluator_of
from jaxlean.run.evaluations import Evaluations
from jaxlean.run.few_shot import few_shot_of
from jaxlean.run.fit import fit
from jaxlean.run.folder import check_shared, check_space, claim
from jaxlean.run.generate import chat_template
from jaxlean.run.image import image_of
from jaxlean.run.init_from import with_start
from jaxlean.run.inputs import batches_of, tokenizer_of
from jaxlean.run.job import (
    ANY_ACTIVATION,
    base,
    batch_shapes,
    builder,
    check_rounds,
    compile_step,
    copies,
    first_state,
    form_of,
    is_pissa,
    outer_step,
    placed,
    resolved,
    rows_of_step,
    tokens_at_a_time,
    trains_of,
)
from jaxlean.run.lock import FolderLock
from jaxlean.run.meter import Meter
from jaxlean.run.metrics import Metrics, check_installed, last_told
from jaxlean.run.peers import Peers, join
from jaxlean.run.predict import here, step_seconds, workspace
from jaxlean.run.preemption import Preemption
from jaxlean.run.progress import Progress
from jaxlean.run.provenance import check_same, provenance
from jaxlean.run.rounds import Rounds, fixed
from jaxlean.run.rows import OwnRows
from jaxlean.run.spending import Spending
from jaxlean.run.step_memory import by_category
from jaxlean.run.summary import final_table, write_summary
from jaxlean.run.teacher import student_devices
from jaxlean.run.vocabulary import with_new_tokens
from jaxlean.train.optimizer import optimizer, schedule
from jaxlean.train.zeros import share_of_zeros, zeros_to_keep
from jaxlean.xla.compile import Compilations, use_cache
from jaxlean.xla.mesh import check_axes, make_mesh, split_host
from jaxlean.xla.remat import check
from jaxlean.xla.remat_auto import argument_bytes, needed_bytes
from jaxlean.xla.work import count


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
        Preempted: SIGTERM or Ctrl-C came; its `saved` says whether there is a state to resume from.
    """
    with (
        join(config.distributed) as peers,
        Preemption(peers) as preemption,
        FolderLock(Path(config.output_dir)) as lock,
    ):
        return _finetune(config, resume, overwrite, peers, preemption, lock)


def _finetune(
    config: RunConfig, resume: bool, overwrite: bool, peers: Peers, preemption: Preemption, lock: FolderLock
) -> dict[str, Any]:
    started = time.perf_counter()
    console = peers.console()
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)

    # ---- config: nothing is touched before everything that can be known to be wrong is known
    if config.data.train is None:
        raise ConfigError("data.train is not set", fix="data.train=FILE, or a `data:` section in the config")
    check_installed(config.report)
    split_host(config.mesh.host_devices)
    check(config.train.remat, ANY_ACTIVATION)
    template = chat_template(config.model)
    config, new_tokens = with_new_tokens(resolved(with_start(config), trains=False), counted=True)
    output_dir = Path(config.output_dir)
    peers.first(lambda: claim(output_dir, config, resume=resume, overwrite=overwrite, dry=True, lock=lock))
    use_cache(config.compilation_cache)

    # ---- mesh
    mesh = make_mesh(config.mesh, student_devices(config))
    kind, machine = mesh.devices.flat[0].device_kind, here(list(mesh.devices.flat), config.cost.hardware)
    account = Account(config, machine, kind, num_hosts=peers.num_hosts)
    energy = EnergyMeter(machine.device, mesh.size, num_hosts=peers.num_hosts, pue=config.cost.pue)

    # ---- model
    model = base(config, mesh, say=say)
    tokenizer = tokenizer_of(model, template)

    # ---- data
    rows = rows_of_step(config, mesh)
    own = OwnRows(mesh, rows, config.train.gradient_accumulation_steps)
    losses = BaseLosses(config, mesh, peers, resume=resume, say=say)
    batches = batches_of(config, model, tokenizer, rows=rows, held=own.held, losses=partial(losses, model))
    lessons = Lessons(config, model, mesh, own, peers, batches, say=say) if config.distill is not None else None
    num_steps = batches.num_steps
    check_rounds(config, mesh, num_steps)
    if config.data.labels is not None:
        say(f"labels: {len(config.data.labels):,} in {config.data.label_column!r}: {_shown(config.data.labels)}")
    if new_tokens is not None:
        say(new_tokens)
    say(f"data: {batches.stats}\nsteps: {num_steps:,} of {rows} x {batches.length} tokens")
    declared = {path: tuple(leaf.shape) for path, leaf in tree.flatten(model.params).items()}
    for line in check_axes(mesh, declared, num_kv_heads=model.config.num_kv_heads, length=batches.length):
        say(line)

    # ---- adapt
    peers.barrier()
    model, trains = placed(config, model, mesh)
    model.tokenizer = tokenizer
    params = model.params
    trainable, frozen = tree.split(params, trains)
    start_adapter = jax.device_get(trainable) if is_pissa(config) else None
    num_params, num_trainable = _count(params), _count(trainable)
    held = _held(config, model)
    say(f"model: {model.family.model_type}, {num_params:,} parameters in {held}, {num_trainable:,} train")
    if config.lora is not None and config.lora.init_from is not None:
        say(f"adapter: goes on from {config.lora.init_from}, rank {config.lora.r}, alpha {config.lora.lora_alpha:g}")
    say(f"attention: {model.attention}")
    if config.train.keep_zeros:
        say(
            f"zeros: {zeros_to_keep(trainable if config.lora is None else params):.1%} of the matrices, which stay zero"
        )

    # ---- step
    transform = optimizer(config.train, num_steps, trainable, ratio=lora.learning_rate_ratios(config.lora))
    rate = schedule(config.train, num_steps)
    state = first_state(config, trainable, transform, mesh)
    frozen = hold(frozen)
    # the state holds what trains from here on; a second copy of it would cost as much again
    model.params, params, trainable = {}, {}, {}
    shardings = jax.tree.map(lambda x: x.sharding, state)
    build = builder(config, model, mesh, transform, shardings)
    evaluator = None
    if config.eval.mode != "none" and (config.data.eval or config.data.eval_fraction):
        evaluator = evaluator_of(config, model, tokenizer, mesh)
    if evaluator is not None:
        say(f"held-out data: {evaluator.stats}")
        check_axes(mesh, declared, num_kv_heads=model.config.num_kv_heads, length=evaluator.length)
    few_shot = None
    if evaluator is not None and config.eval.shots is not None:
        few_shot = few_shot_of(config, model, tokenizer, mesh)
        say(str(few_shot))
    made_of = peers.first(
        lambda: provenance(
            config, model, evaluator.examples if evaluator else None, lessons.teacher.folder if lessons else None
        )
    )
    programs = Compilations()
    chosen = None
    if config.train.remat == "auto":
        chosen = fit(
            config,
            mesh,
            build,
            state,
            frozen,
            rows,
            batches.length,
            hidden=model.config.hidden_size,
            names=model.config.activations,
            image=image_of(model),
        )
    from_cache = programs.all_from_cache
    remat = chosen.policy if chosen is not None else config.train.remat
    built = {"dtype": model.dtype.name, "attention": model.attention, "remat": remat}
    if chosen is not None:
        say(str(chosen))
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    peers.first(lambda: check_space(output_dir, state_bytes, config.train.save_total_limit))

    # ---- resume
    peers.first(lambda: claim(output_dir, config, resume=resume, overwrite=overwrite, lock=lock))
    check_shared(output_dir, peers)
    losses.keep()
    checkpoints = Checkpoints(output_dir / "checkpoints", keep=config.train.save_total_limit, peers=peers)
    saved = checkpoints.latest(state._asdict(), same=fixed(state)) if resume else None
    peers.leaving = partial(checkpoints.settle, 20.0)
    meter = Meter(account.price, clock_start=started, energy=energy)
    if saved is not None:  # before anything that lies in the folder is changed
        check_same(saved.state.get("made_of", {}), made_of, output_dir)
        batches.restore(saved.state["data"])
        meter.restore(saved.state["meter"], seen=last_told(output_dir / "metrics.jsonl", "seconds"))
        account.restore(saved.state.get("account"))
    resume_step = saved.step if saved is not None else None
    written = output_dir if peers.is_first else None
    metrics = Metrics(written, config.report, resume_step=resume_step, config=config.model_dump())
    evaluations = Evaluations(
        config, output_dir, evaluator, peers, num_steps=num_steps, metrics=metrics, resume=resume,
        resume_step=resume_step, say=say,
    )  # fmt: skip
    evaluations.hand_over_base(model, state.result, frozen, mesh)
    if saved is not None:
        state = state._replace(**saved.arrays)
        say(f"resumed at step {saved.step} of {num_steps}")
    elif resume:
        say("no checkpoint to resume from: starting at step 0")
    if model.drawn and saved is None:
        say(f"new: {', '.join(sorted(model.drawn))}: drawn by seed {config.seed}, since {config.model.path} has none")
    done = saved.step if saved is not None else 0
    progress = Progress(num_steps, start_step=done, bar=config.report.progress, console=console)
    spending = Spending(
        config.cost, meter, account.price, preemption, run=str(output_dir), say=progress.message, active=peers.is_first
    )

    waiting = DataWait(config)

    def report(*, wait: bool = False) -> None:
        for line in meter.ready(wait=wait):
            line["learning_rate"] = float(rate(line["step"] - 1))
            metrics.log(line["step"], line)
            progress.report(**Meter.shown(line))
            if (told := waiting.told(done, meter.data_wait_share)) is not None:
                progress.message(told)

    def save(*, wait: bool = False) -> None:
        meter.check(done)
        report(wait=True)  # a resumed run writes no line of what lies behind its checkpoint
        rest = {"data": batches.state(), "meter": meter.state(), "account": account.state(), "made_of": made_of}
        with meter.within(CHECKPOINT):
            before = time.perf_counter()
            checkpoints.save(done, state._asdict(), rest | fixed(state), wait=wait)
            spending.saved(time.perf_counter() - before)

    try:
        # ---- teacher
        spending.begin()
        if lessons is not None:
            with meter.within(TEACHER):
                meter.eval_teacher = lessons.prepare(evaluator)

        # ---- evaluate before
        with meter.within(EVALUATION):
            evaluations.before(model, state.result, frozen, meter)
        if few_shot is not None and done == 0:
            with meter.within(EVALUATION):
                meter.eval_few_shot = few_shot(model, state.result, frozen)
            metrics.log(0, {f"eval_few_shot_{k}": v for k, v in meter.eval_few_shot.items()})

        # ---- loop
        save_steps = config.train.save_steps or max(num_steps // 10, 1)
        shapes = batch_shapes(config, rows, batches.length, mesh, image_of(model))
        if chosen is not None:
            meter.compiled_before(chosen.seconds)
            meter.compiled_from_cache = from_cache
            compiled, jaxpr = chosen.compiled, chosen.jaxpr
        else:
            with meter.compiling():
                compiled, jaxpr = compile_step(build(config.train.remat), state, frozen, shapes)
        rounds = Rounds(config, outer_step(config, mesh, shardings), state, num_steps)
        meter.compiled_before(rounds.compile_seconds)
        at_a_time = tokens_at_a_time(config, rows, batches.length, mesh)
        more = workspace(machine.platform, model.config.hidden_size, tokens=at_a_time)
        meter.predicted_memory_bytes = max(needed_bytes(compiled) + more, rounds.memory_bytes)
        meter.memory_by_category = by_category(meter.predicted_memory_bytes, state, frozen, shapes)
        took = step_seconds(compiled, jaxpr, machine, copies=copies(state, mesh))
        meter.predicted_step_seconds = took.total + rounds.seconds(machine).total
        meter.flops_of_step = float(count(jaxpr).total_flops)
        if machine.device.tflops:  # else nothing says what share of the peak it is
            useful = jaxpr if config.train.remat == "none" else build("none").trace(state, frozen, shapes).jaxpr.jaxpr
            account.flops_per_step = float(count(useful).total_flops)
        jaxpr = None
        peers.barrier()
        meter.start_training(argument_bytes(compiled), len(mesh.local_devices))
        with progress, preemption.stepping():
            while done < num_steps:
                preemption.check(done)
                spending.between()
                # before the next step, so that a run interrupted here evaluates when it is resumed
                stop = evaluations.between(done, state.result, frozen, meter)
                if stop is not None:
                    progress.message(f"stopped early at step {done} ({stop.rule}): {stop.message}")
                    metrics.log(done, {"stopped_early": stop.message})
                    if done % config.train.logging_steps:
                        meter.mark(done)
                    save()
                    break
                with preemption.deferred():  # the state, the place in the data and `done` move together
                    wanted = time.perf_counter()
                    rows_of_data = next(batches)
                    ready = time.perf_counter()
                    batch = (
                        own.on_devices(rows_of_data)
                        if lessons is None
                        else lessons.on_devices(rows_of_data, done, state.result, frozen)
                    )
                    state, measured = compiled(state, frozen, batch)
                    done += 1
                    state = rounds(state, done)
                    meter.add(done, measured, wanted=wanted, ready=ready)
                    progress.update(done)
                    if done % config.train.logging_steps == 0 or done == num_steps:
                        meter.mark(done)
                    report()
                    if done % save_steps == 0 or done == num_steps:
                        save()
            meter.stop_training()
        if config.data.streaming:
            say(f"data: {batches.stats}")

        # ---- evaluate after
        with meter.within(EVALUATION):
            meter.eval_after, trained = evaluations.after(model, state.result, frozen, done, meter)

        # ---- write
        if config.lora is None and (config.train.keep_zeros or config.train.pruning is not None):
            say(f"zeros: {share_of_zeros(trained):.1%} of the matrices that trained")
        checkpoints.close()
        result = _write(config, model, output_dir, trained, frozen, start_adapter, peers)
        evaluations.close(finished=True)
        preemption.over()
    except BaseException as error:
        with preemption.deferred():  # a second signal waits until everything is on disk
            meter.stop_training()
            status = "diverged" if meter.broken_at else "failed"
            try:
                if isinstance(error, Preempted):
                    if error.together or peers.num == 1:  # else the others are somewhere else, and at their ends
                        save(wait=True)
                        peers.barrier()
                    status = error.status
                    preemption.saved = bool(peers.num == 1 or error.together or checkpoints.steps())
            finally:
                steps = meter.broken_at - 1 if meter.broken_at else done
                with contextlib.suppress(UserError):  # a full disk, say: the first error is the one to show
                    if peers.is_first:
                        summary = _summarise(
                            output_dir,
                            status,
                            steps,
                            meter,
                            account,
                            mesh,
                            built,
                            num_params,
                            num_trainable,
                            evaluations,
                        )
                        account.enter(summary, say)
                with contextlib.suppress(UserError):
                    checkpoints.close()
        raise
    finally:
        evaluations.close()
        batches.close()
        metrics.close()
        meter.close()
    summary = _summarise(
        written, "completed", done, meter, account, mesh, built, num_params, num_trainable, evaluations
    )
    peers.first(lambda: account.enter(summary, say))
    final_table(summary, adapter=result, console=console)
    return summary


def _write(
    config: RunConfig,
    model: Model,
    output_dir: Path,
    trainable: tree.Tree,
    frozen: tree.Tree,
    start: tree.Tree | None,
    peers: Peers,
) -> Path:
    """The result in the format others load: an adapter, or a whole model."""
    frozen = release(frozen)
    whole = tree.merge(trainable, frozen)
    rows_alone = config.lora is None and all(map(vocabulary.is_row, tree.flatten(trainable)))
    if config.lora is None and not rows_alone:
        held = None if config.model.save_dtype == "auto" else config.model.save_dtype
        folder = output_dir / "model"
        params = peers.gather(whole)
        if peers.is_first:
            whole_model = model.with_params(vocabulary.merge(params))
            if config.data.labels is not None:
                whole_model.hf_config = model.hf_config | label_settings(config.data.labels)
            whole_model.tokenizer = model.tokenizer  # with the config's chat template
            shutil.rmtree(folder, ignore_errors=True)  # of this run, killed after it wrote it
            write_model(whole_model, folder, dtype=held)
        return folder
    trains = vocabulary.is_row if rows_alone else trains_of(config, model)

    def is_kept(path: str) -> bool:
        return ".lora_" in path or vocabulary.is_beside(path) or trains(path)

    adapter = peers.gather(tree.split(whole, is_kept)[0])
    if peers.is_first:
        if start is not None:
            adapter = lora.unprincipal(adapter, start)
        write_adapter(
            output_dir / "adapter", model.names, adapter, config.lora, base=str(config.model.path), task=config.task,
            settings=None if config.data.labels is None else model.hf_config | label_settings(config.data.labels),
            tokenizer=model.tokenizer if vocabulary.has_rows(adapter) else None, trained_over=form_of(config),
        )  # fmt: skip
    return output_dir / "adapter"


def _summarise(
    folder: Path | None,
    status: str,
    steps: int,
    meter: Meter,
    account: Account,
    mesh: jax.sharding.Mesh,
    built: dict[str, Any],
    num_params: int,
    num_trainable: int,
    evaluations: Evaluations,
) -> dict[str, Any]:
    summary = {
        "status": status,
        "ended": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "steps": steps,
        **(totals := meter.totals()),
        **account.figures(totals, steps),
        **evaluations.summary(),
        "peak_memory_bytes": peak_memory_bytes(),
        **built,
        "num_params": num_params,
        "num_trainable": num_trainable,
        "device_kind": mesh.devices.flat[0].device_kind,
        "num_devices": mesh.size,
        "versions": versions(),
    }
    if folder is not None:
        write_summary(folder / "summary.json", summary)
    return summary


def _held(config: RunConfig, model: Model) -> str:
    """What matrices are held and multiplied in, in words."""
    form, matmul = config.model.quantization, config.model.matmul
    held = model.dtype.name if form == "none" else f"{form} and {model.dtype.name}"
    return held if matmul == "default" else f"{held}, multiplied in {matmul}"


def _shown(labels: list[str], most: int = 6) -> str:
    return ", ".join(labels[:most]) + (", ..." if len(labels) > most else "")


def _count(params: tree.Tree) -> int:
    """Parameters; an adapter's fixed scale, and which tokens are new, are settings."""
    leaves = tree.flatten(params).items()
    fixed = (".lora_scale", vocabulary.IDS)
    return sum(codec.num_params(path, x) for path, x in leaves if not path.endswith(fixed))
