"""`jaxlean plan`: what a job would cost on hardware that is not here, cheapest first.

data       the rows of the job, tokenized: steps, tokens, lengths
targets    a process for each, which compiles the foremost candidates (plan/search.py)
offers     hours, dollars, energy
the plan   a ranked table; a JSON file that `finetune --plan` reads
"""

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.config import MeshSection, RunConfig, build
from jaxlean.config.read import told
from jaxlean.errors import ConfigError
from jaxlean.plan.candidate import rows_per_step
from jaxlean.plan.offer import JobSize, Offer, offer, ranked
from jaxlean.plan.search import MOST
from jaxlean.plan.target import DEFAULT, Target, parse
from jaxlean.plan.workers import Job, run
from jaxlean.run.generate import chat_template
from jaxlean.run.job import resolved
from jaxlean.run.predict import Machine, here
from jaxlean.xla.mesh import split_host

# What a plan's file says it is; its number rises when an older jaxlean could not read it.
FORMAT = 1
# What may change between a plan and its run: it moves neither memory nor time.
_FREE = {"learning_rate", "logging_steps", "save_steps", "save_total_limit", "save_dtype", "eval", "eval_fraction"}


@dataclass(frozen=True)
class Plan:
    """What was found.

    Args:
        work: the job.
        offers: ranked; the first is the winner, if it runs.
        config: of the job.
    """

    work: JobSize
    offers: list[Offer]
    config: RunConfig

    @property
    def winner(self) -> Offer | None:
        """The cheapest that runs and may; None where there is none."""
        first = self.offers[0] if self.offers else None
        return first if first is not None and first.runs and not first.why else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `settings` are those of the winner, which `finetune --plan` takes."""
        winner = self.winner
        return {
            "format": FORMAT,
            "target": winner.row.target if winner is not None else None,
            "settings": self._settings(winner) if winner is not None else None,
            "work": asdict(self.work),
            "offers": [found.as_dict() for found in self.offers],
            "config": self.config.model_dump(mode="json"),
        }

    def _settings(self, winner: Offer) -> dict[str, Any]:
        assert winner.row.candidate is not None
        # of a CPU there is one, which has to be told that it is several
        host = winner.num_devices if parse(winner.row.target, self.config.cost.hardware).platform == "cpu" else 1
        return {**winner.row.candidate.settings(), "mesh.host_devices": host}


def plan(
    config: RunConfig,
    targets: Sequence[str] = DEFAULT,
    *,
    deadline_hours: float | None = None,
    max_usd: float | None = None,
    parallel: int | None = None,
    limit_seconds: float = 300.0,
    most: int = MOST,
    watch: Any = lambda target, what: None,
) -> Plan:
    """Plan a job on every target.

    Args:
        config: as `finetune` takes it. The sequences of a step stay what they are; what the config leaves at its
            default (mesh, remat, the base's form) is chosen.
        targets: as `plan.target.parse` reads them.
        deadline_hours, max_usd: what exceeds them is ranked last.
        parallel: processes at a time; default: one a core.
        limit_seconds: that one compilation may take.
        most: compilations for a target.
        watch: told (target, what is being done for it).

    Raises:
        UserError: a target that the table does not have, or a job that could not run anywhere.
    """
    file = config.cost.hardware
    known: dict[str, Target] = {}
    for text in targets:
        found = parse(text, file)
        known[found.name] = found
    config = config.model_copy(deep=True)
    config.mesh.auto = False  # what it would choose for the devices here is chosen for each target
    job = resolved(config)
    work = describe(job)
    check_job(job, work.length)
    cores = os.cpu_count() or 1
    jobs = [
        Job(name, told(job), work.length, file, most,
            target.num_devices if target.platform == "cpu" else 1)
        for name, target in known.items()
    ]  # fmt: skip
    offers = [
        offer(row, known[row.target], work, file)
        for row in run(jobs, parallel=parallel or cores, limit_seconds=limit_seconds, watch=watch)
    ]
    return Plan(work, ranked(offers, deadline_hours=deadline_hours, max_usd=max_usd), config)


def check_job(config: RunConfig, length: int) -> None:
    """What is wrong with a job on every target, said once, with its fix; the step is made of shapes, for one device.

    Raises:
        UserError: as `finetune` before it trains.
    """
    from jaxlean.run.job import ANY_ACTIVATION, outline
    from jaxlean.xla.remat import check

    check(config.train.remat, ANY_ACTIVATION)
    outline(*_on_one_device(config), length=length)


def describe(config: RunConfig, *, rows: int | None = None) -> JobSize:
    """What a job is, from its data: steps, and tokens.

    Args:
        rows: sequences of a step; default: what the config says on one device.

    Raises:
        UserError: as `finetune`, for the model's config, the tokenizer and the data.
    """
    from jaxlean.models.config import LayersConfig
    from jaxlean.run.inputs import batches_of, tokenizer_of
    from jaxlean.run.job import base

    if config.data.train is None:
        raise ConfigError("data.train is not set", fix="data.train=FILE, or a `data:` section in the config")
    if config.model.path is None and config.model.architecture is None:
        raise ConfigError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    config = resolved(config)
    model = base(*_on_one_device(config), shapes=True)
    if not isinstance(model.config, LayersConfig):
        raise ConfigError(
            "plans reckon with the layers of a transformer, and this is another model", where=config.model.path,
            got=model.family.model_type,
            fix="set the mesh yourself (mesh.data=-1); finetune says what its step takes as soon as it is compiled",
        )  # fmt: skip
    tokenizer = tokenizer_of(model)
    template = chat_template(config.model)
    if template is not None and tokenizer is not None:
        tokenizer.chat_template = template
    rows = rows if rows is not None else rows_per_step(config)
    # which rows the base finds hard changes no shape, and of the number of steps one or two at most
    batches = batches_of(config, model, tokenizer, rows=rows, losses=lambda examples: np.zeros(len(examples)))
    try:
        tokens = batches.stats.tokens
        return JobSize(batches.num_steps, rows, batches.length, tokens)
    finally:
        batches.close()


def _on_one_device(config: RunConfig) -> tuple[RunConfig, Any]:
    """The job without what only some hardware has, which is for that hardware's own row to tell; and a mesh."""
    import jax

    from jaxlean.xla.mesh import make_mesh

    one = config.model_copy(deep=True)
    one.mesh = MeshSection(data=1)
    one.train.sync = "step"
    one.model.attention, one.model.matmul = "auto", "default"
    return one, make_mesh(one.mesh, jax.local_devices()[:1])


def write(found: Plan, file: Path) -> None:
    """Write a plan as JSON, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = json.dumps(found.as_dict(), indent=1, default=str)
    try:
        if file.exists() and not file.is_file():  # a pipe
            file.write_text(text, encoding="utf-8")
            return
        file = file.resolve()
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    except OSError as error:
        raise _unwritable(file, error) from None


def check_writable(file: Path) -> None:
    """Before a plan is made that could not be kept.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not file.exists() or file.is_file():
            tempfile.TemporaryFile(dir=file.resolve().parent).close()
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> ConfigError:
    got = error.strerror or str(error)
    return ConfigError("the plan cannot be written there", where=file, got=got, fix="--json names a file")


def apply(config: RunConfig, file: Path) -> RunConfig:
    """The config with the settings of a plan's winner, for the devices that are here.

    Of a plan for as many devices of another kind the settings are taken all the same, and a line says so.

    Raises:
        ConfigError: no plan in that file, one that nothing won, one of another job, or one for more or fewer devices
            than are here.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such plan", where=file, fix="jaxlean plan CONFIG --json FILE writes one") from None
    except (OSError, ValueError) as error:  # ValueError: neither text nor JSON
        raise ConfigError(
            "not a plan", where=file, got=error, fix="jaxlean plan CONFIG --json FILE writes one"
        ) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError(
            "not a plan of this jaxlean", where=file, wanted=f"format {FORMAT}", fix="plan again, with --json"
        )
    settings = values.get("settings")
    if not settings:
        raise ConfigError(
            "in this plan nothing won: no target runs the job", where=file, fix="other targets, or a smaller job"
        )
    changed = config.model_dump(mode="json")
    changed["mesh"]["auto"] = False
    try:
        for key, value in settings.items():
            section, _, name = key.partition(".")
            if value is not None:
                changed[section][name] = value
        target = str(values["target"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError("not a plan", where=file, got=f"{type(error).__name__}: {error}") from None
    planned = build(changed, where=file)
    _check_same_job(config.model_dump(mode="json"), values.get("config"), file)
    _check_devices(planned, target, file)
    return planned


def _check_same_job(now: dict[str, Any], planned: Any, file: Path) -> None:
    """What a plan says holds for the job it was made for: what decides memory and time is as it was."""
    planned = planned if isinstance(planned, dict) else {}  # a plan made by hand may leave it out
    for section in ("model", "data", "lora", "train"):
        if section not in planned:
            continue
        old, new = planned[section], now[section]
        pairs = [("", old, new)]
        if isinstance(old, dict) and isinstance(new, dict):
            pairs = [(f".{key}", old.get(key), new[key]) for key in new]
        for key, was, said in pairs:
            if was != said and key.lstrip(".") not in _FREE:
                raise ConfigError(
                    f"the plan is of another job: {section}{key}",
                    where=file,
                    got=said,
                    wanted=f"{was}, as it was planned",
                    fix="plan again, or leave the setting as it was",
                )


def _check_devices(config: RunConfig, target: str, file: Path) -> None:
    import jax

    split_host(config.mesh.host_devices)
    found = here(jax.devices(), config.cost.hardware)
    wanted = parse(target, config.cost.hardware)
    own = f"{found.num_devices} of {found.device.name}"
    if found.num_devices != wanted.num_devices:
        raise ConfigError(
            "the plan is for another number of devices",
            where=file,
            got=own,
            wanted=target,
            fix=f"run it there, or plan for what is here: --targets {_asked(found)}",
        )
    if found.device.target != wanted.device.target:
        print(f"plan: made for {target}, run on {own}: its settings hold, its memory, hours and prices do not")


def _asked(machine: Machine) -> str:
    name = machine.device.target or "a name from configs/hardware.yaml"
    if machine.platform == "tpu":
        return f"{name} with its grid, as in v5e:2x4"
    return f"{name}:{machine.num_devices}"


def best_of_each(offers: Sequence[Offer]) -> list[Offer]:
    """The first offer of each target, in order; and the config as it is written, where it does not fit."""
    seen: set[str] = set()
    best = []
    for found in offers:
        if found.row.as_written or found.row.target not in seen:
            best.append(found)
        if not found.row.as_written:
            seen.add(found.row.target)
    return best
