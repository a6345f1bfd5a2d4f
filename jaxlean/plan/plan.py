"""`jaxlean plan`: what a job would cost on hardware that is not here, cheapest first.

data       the rows of the job, tokenized: steps, tokens, lengths
targets    a process for each, which compiles the foremost candidates (plan/search.py)
offers     hours, dollars, energy
the plan   a ranked table; a JSON file that `finetune --plan` reads
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.config.read import told
from jaxlean.data.loader import train_batches
from jaxlean.errors import ConfigError
from jaxlean.plan.candidate import rows_per_step
from jaxlean.plan.offer import Offer, Work, offer, ranked
from jaxlean.plan.search import MOST
from jaxlean.plan.target import DEFAULT, Target, parse
from jaxlean.plan.workers import Job, run
from jaxlean.run.generate import chat_template

# What a plan's file says it is; its number rises when an older jaxlean could not read it.
FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What was found.

    Args:
        work: the job.
        offers: ranked; the first is the winner, if it runs.
        config: of the job.
    """

    work: Work
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
        candidate = winner.row.candidate if winner is not None else None
        return {
            "format": FORMAT,
            "target": winner.row.target if winner is not None else None,
            "settings": candidate.settings() if candidate is not None else None,
            "work": asdict(self.work),
            "offers": [found.as_dict() for found in self.offers],
            "config": self.config.model_dump(mode="json"),
        }


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
    work = describe(config)
    cores = os.cpu_count() or 1
    jobs = [
        Job(name, told(config), work.length, file, most,
            target.num_devices if target.platform == "cpu" else 1)
        for name, target in known.items()
    ]  # fmt: skip
    offers = [
        offer(row, known[row.target], work, file)
        for row in run(jobs, parallel=parallel or cores, limit_seconds=limit_seconds, watch=watch)
    ]
    return Plan(work, ranked(offers, deadline_hours=deadline_hours, max_usd=max_usd), config)


def describe(config: RunConfig, *, rows: int | None = None) -> Work:
    """What a job is, from its data: steps, and tokens.

    Args:
        rows: sequences of a step; default: what the config says on one device.

    Raises:
        UserError: as `finetune`, for the model's config, the tokenizer and the data.
    """
    from jaxlean.hub.files import locate
    from jaxlean.hub.load import load_tokenizer

    if config.data.train is None:
        raise ConfigError("data.train is not set", fix="data.train=FILE, or a `data:` section in the config")
    path = config.model.tokenizer or config.model.path
    if path is None:
        raise ConfigError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    tokenizer = load_tokenizer(str(locate(path, weights=False)))
    template = chat_template(config.model)
    if template is not None:
        tokenizer.chat_template = template
    rows = rows if rows is not None else rows_per_step(config)
    batches = train_batches(config, tokenizer, rows_per_step=rows)
    try:
        tokens = batches.stats.tokens
        return Work(batches.num_steps, rows, batches.length, tokens)
    finally:
        batches.close()


def write(found: Plan, file: Path) -> None:
    """Write a plan as JSON, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as part:
            json.dump(found.as_dict(), part, indent=1, default=str)
        os.replace(part.name, file)
    except OSError as error:
        raise ConfigError("the plan cannot be written", where=file, got=error, fix="--json names a file") from None


def apply(config: RunConfig, file: Path) -> RunConfig:
    """The config with the settings of a plan's winner.

    Raises:
        ConfigError: no plan in that file, or one that nothing won.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such plan", where=file, fix="jaxlean plan CONFIG --json FILE writes one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError("not a plan", where=file, got=error) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError("not a plan of this jaxlean", where=file, wanted=f"format {FORMAT}")
    if not values.get("settings"):
        raise ConfigError("in this plan nothing won: no target runs the job", where=file)
    changed = config.model_copy(deep=True)
    for key, value in values["settings"].items():
        section, _, name = key.partition(".")
        if value is not None:
            setattr(getattr(changed, section), name, value)
    return changed


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
