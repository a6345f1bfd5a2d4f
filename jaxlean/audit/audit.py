"""`jaxlean audit`: which cuts a config leaves on the table, ranked by the dollars that each is planned to save.

config     ours, or another project's, converted
data       its rows: steps, tokens, duplicates
cuts       those not in force; of each the settings that would put it there
plan       the config's own step, and the step with each cut, compiled for each target (plan/)
table      what each saves on the cheapest target that it fits on; what no plan can tell apart from it
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxlean.audit.duplicates import Duplicates, duplicates
from jaxlean.audit.proposals import Proposal, Unplanned, cuts_in_force, proposals, unplanned
from jaxlean.config import RunConfig, with_values
from jaxlean.config.read import told
from jaxlean.errors import ConfigError, UserError
from jaxlean.plan.local import NEAR
from jaxlean.plan.offer import JobSize, Offer, offer
from jaxlean.plan.plan import check_job, describe
from jaxlean.plan.search import Row, Ways
from jaxlean.plan.target import Target, parse
from jaxlean.plan.workers import Job, run
from jaxlean.platform import written_for
from jaxlean.run.job import resolved
from jaxlean.xla.precision import compute_dtype
from jaxlean.xla.remat_auto import say_bytes

# Compilations for one config on one target: one, but where the policy or the mesh is to be chosen.
_MOST = 2
AS_WRITTEN, TOGETHER = "as written", "all together"


@dataclass(frozen=True)
class Cost:
    """What a config is planned to take on the cheapest target that it fits on.

    Args:
        offer: of that target.
        usd: as the config is paid; None where there is no price.
    """

    offer: Offer
    usd: float | None

    @property
    def hours(self) -> float:
        """Of training."""
        assert self.offer.hours is not None
        return self.offer.hours


@dataclass(frozen=True)
class Finding:
    """A cut that is not in force, and what the job would take with it.

    Args:
        proposal: the cut.
        settings: to add; what the planner chose is among them.
        cost: with it; None: it was not planned, or does not fit.
        saves_usd, saves_hours: against the config as it is written; None where that fits nowhere.
        close: the two steps are so near to each other that the estimates do not tell which is faster.
        how: where the saving is from: `planned`, `counted` rows, `price table`.
        note: what is to be known, or why there is no cost.
    """

    proposal: Proposal
    settings: Mapping[str, Any]
    cost: Cost | None
    saves_usd: float | None = None
    saves_hours: float | None = None
    close: bool = False
    how: str = "planned"
    note: str = ""

    @property
    def pays(self) -> bool:
        """Whether the job is cheaper with it, or runs at all."""
        if self.cost is None:
            return False
        if self.saves_hours is None:
            return True
        return (self.saves_usd if self.saves_usd is not None else self.saves_hours) > 0


@dataclass(frozen=True)
class Audit:
    """What was found.

    Args:
        config: resolved.
        work: the job as it is written.
        targets: that were looked at.
        cost: of the config as it is written; None where it fits nowhere, and `why` says by how much.
        in_force: (number, name) of the cuts that it has.
        pays: cuts that save, the most first.
        others: cuts that were planned and save nothing here, or could not be.
        unplanned: cuts whose saving no plan can tell.
        together: the config with all that pay; None where there are fewer than two, or it could not be planned.
        notes: of the plan, for people.
    """

    config: RunConfig
    work: JobSize
    targets: tuple[str, ...]
    cost: Cost | None
    in_force: list[tuple[int | None, str]]
    pays: list[Finding]
    others: list[Finding]
    unplanned: list[Unplanned]
    together: Finding | None = None
    why: str = ""
    notes: list[str] = field(default_factory=list)


def audit(
    config: RunConfig,
    targets: Sequence[str],
    *,
    here: bool = False,
    limit_seconds: float = 300.0,
    parallel: int | None = None,
    watch: Callable[[str], None] = lambda what: None,
) -> Audit:
    """Plan a config as it is written and with each cut that it does without.

    Args:
        config: as `finetune` takes it.
        targets: as `plan.target.parse` reads them; a cut may make a cheaper one of them do.
        here: these are the devices of this machine, whose price may be the user's own (`cost.usd_per_hour`).
        limit_seconds: that one compilation may take.
        parallel: compilers at a time; default: one a core.
        watch: told what is being done.

    Raises:
        UserError: a target that the table does not have, or a job that could not run anywhere.
    """
    known = {found.name: found for found in (parse(text, config.cost.hardware) for text in targets)}
    config = config.model_copy(deep=True)
    config.mesh.auto = False  # what it would choose is one of the cuts
    watch("reading the data")
    job = resolved(config)
    work = describe(job)
    check_job(job, work.length)
    planner = _Planner(known, parallel or os.cpu_count() or 1, limit_seconds, here, watch)

    # ---- the cuts that are not in force
    spreads = work.rows > 1 or any(target.num_devices > 1 for target in known.values())
    open_ = proposals(job, {_dtype(job, target) for target in known.values()}, spreads=spreads)
    left = unplanned(job, spreads=spreads)
    variants: dict[str, _Variant] = {AS_WRITTEN: _Variant(job, work)}
    refused: list[Finding] = []
    for proposal in open_:
        try:
            variants[_key(proposal)] = _variant(job, work, proposal)
        except UserError as error:
            refused.append(Finding(proposal, proposal.settings, None, note=f"cannot be: {error.what}"))

    # ---- planned, each by itself
    rows = planner.plan(variants)
    base = planner.cheapest(variants[AS_WRITTEN], rows[AS_WRITTEN])
    findings = [
        _finding(proposal, base, planner, variants[_key(proposal)], rows[_key(proposal)])
        for proposal in open_
        if _key(proposal) in variants
    ]
    watch("looking for duplicates")
    findings += _counted(job, base, left)
    findings += _priced(job, base, here)
    pays, others = _ranked(findings)

    # ---- and all that pay, together
    together = None
    if len([found for found in pays if found.how != "price table"]) > 1 or (pays and base is None):
        together = _together(job, work, base, pays, planner)
    ran = _ran(base)
    notes = sorted({note for found in rows.values() for row in found for note in row.note.splitlines() if row.note})
    return Audit(
        job, work, tuple(known), base, cuts_in_force(job, ran), pays, [*others, *refused], left, together,
        "" if base is not None else _why(rows[AS_WRITTEN]), notes if base is not None else [],
    )  # fmt: skip


@dataclass(frozen=True)
class _Variant:
    """A config to plan."""

    config: RunConfig
    work: JobSize
    ways: Ways = "own"


class _Planner:
    """Plans variants on all targets.

    Args:
        targets: by name.
        parallel: compilers at a time.
        limit: seconds of a compilation.
        here: the targets are this machine.
        watch: told what is being done.
    """

    def __init__(
        self, targets: Mapping[str, Target], parallel: int, limit: float, here: bool, watch: Callable[[str], None]
    ):
        self._targets, self._parallel, self._limit, self._here, self._watch = targets, parallel, limit, here, watch

    def plan(self, variants: Mapping[str, _Variant]) -> dict[str, list[Row]]:
        """The rows of each."""
        jobs = [
            Job(name, told(variant.config), variant.work.length, variant.config.cost.hardware, _MOST,
                target.num_devices if target.platform == "cpu" else 1, variant.ways, key)
            for key, variant in variants.items()
            for name, target in self._targets.items()
        ]  # fmt: skip
        found: dict[str, list[Row]] = {key: [] for key in variants}
        self._watch(f"compiling {len(jobs)} steps")
        for row in run(jobs, parallel=self._parallel, limit_seconds=self._limit):
            found[row.variant].append(row)
            self._watch(f"compiling {len(jobs)} steps: {row.variant} on {row.target}: {row.status}")
        return found

    def cheapest(self, variant: _Variant, rows: Sequence[Row]) -> Cost | None:
        """On the target that it costs least on; without prices, the one that takes least time."""
        able = []
        for row in rows:
            made = offer(row, self._targets[row.target], variant.work, variant.config.cost.hardware)
            if made.runs:
                able.append(Cost(made, _usd(made, variant.config, self._here)))
        return min(able, key=lambda cost: (cost.usd is None, cost.usd or 0.0, cost.hours), default=None)


def _usd(made: Offer, config: RunConfig, here: bool) -> float | None:
    """What an offer costs as the config says that it is paid."""
    cost = config.cost
    if cost.pricing == "electricity":
        return None if made.kwh is None or cost.usd_per_kwh is None else made.kwh * cost.usd_per_kwh
    if here and cost.usd_per_hour is not None and made.hours is not None:
        return made.hours * cost.usd_per_hour
    return made.usd_spot if cost.pricing == "spot" else made.usd


def _key(proposal: Proposal) -> str:
    return f"{proposal.name} {dict(proposal.settings)}"


def _variant(job: RunConfig, work: JobSize, proposal: Proposal) -> _Variant:
    """The job with a cut.

    Raises:
        UserError: there is no such job.
    """
    changed = with_values(job, proposal.settings) if proposal.settings else job
    return _Variant(changed, describe(changed) if proposal.reads else work, proposal.ways)


def _finding(
    proposal: Proposal, base: Cost | None, planner: _Planner, variant: _Variant, rows: Sequence[Row]
) -> Finding:
    cost = planner.cheapest(variant, rows)
    if cost is None:
        return Finding(proposal, proposal.settings, None, note=_why(rows))
    settings = dict(proposal.settings) | (_chosen(variant.config, cost) if proposal.ways == "spread" else {})
    return _against(Finding(proposal, settings, cost, note=proposal.note), base)


def _against(found: Finding, base: Cost | None) -> Finding:
    """A finding with what it saves."""
    if base is None or found.cost is None:
        return found
    usd = None if base.usd is None or found.cost.usd is None else base.usd - found.cost.usd
    ours, theirs = base.hours, found.cost.hours
    same_place = base.offer.row.target == found.cost.offer.row.target
    close = found.how == "planned" and same_place and max(ours, theirs) < NEAR * min(ours, theirs)
    return replace(found, saves_usd=usd, saves_hours=ours - theirs, close=close)


def _chosen(config: RunConfig, cost: Cost) -> dict[str, Any]:
    """The mesh and microbatch that the planner chose, where they are others than the config's."""
    assert cost.offer.row.candidate is not None
    kept = ("mesh.", "train.per_device", "train.gradient")
    found = {}
    for key, value in cost.offer.row.candidate.settings().items():
        section, _, name = key.partition(".")
        own = getattr(getattr(config, section), name)
        if key.startswith(kept) and value != own and not (own == -1 and value == 1):
            found[key] = value
    return found


def _counted(job: RunConfig, base: Cost | None, left: list[Unplanned]) -> list[Finding]:
    """Rows that say what others say: steps that need not be."""
    name = "duplicate rows"
    if job.train.max_steps is not None:
        left.append(Unplanned(12, name, {}, "train.max_steps says how many steps there are, whatever the rows"))
        return []
    if job.data.streaming:
        left.append(Unplanned(12, name, {}, "a stream is not read before it is learned from"))
        return []
    try:
        found = duplicates(job)
    except UserError as error:
        left.append(Unplanned(12, name, {}, f"they were not counted: {error.what}"))
        return []
    proposal = Proposal(12, name, {"data.train": "runs/curated"} if found.out else {}, note=_of_rows(found))
    if base is None or not found.out:
        return [Finding(proposal, proposal.settings, base if not found.out else None, 0.0, 0.0, how="counted",
                        note=proposal.note)]  # fmt: skip
    rest = 1 - found.share
    made = replace(base.offer, hours=base.hours * rest)
    cost = Cost(made, None if base.usd is None else base.usd * rest)
    return [_against(Finding(proposal, proposal.settings, cost, how="counted", note=proposal.note), base)]


def _of_rows(found: Duplicates) -> str:
    steps = ", ".join(found.steps)
    of = f"{found.rows:,} rows" if found.of_all else f"the first {found.rows:,} rows"
    first = f"{found.out:,} of {of}, {found.share:.1%} of what they say"
    if not found.out:
        return f"none in {of}"
    return f"{first}; before it: jaxlean curate CONFIG 'curate.steps=[{steps}]' output_dir=runs/curated"


def _priced(job: RunConfig, base: Cost | None, here: bool) -> list[Finding]:
    """The same seconds at another price."""
    cost = job.cost
    if base is None or cost.pricing != "on_demand" or (here and cost.usd_per_hour is not None):
        return []
    if base.offer.usd_spot is None or base.usd is None:
        return []
    note = "devices may be taken away: the run then goes on from its newest checkpoint (--resume)"
    proposal = Proposal(None, "spot price", {"cost.pricing": "spot"}, note=note)
    made = Cost(base.offer, base.offer.usd_spot)
    return [_against(Finding(proposal, proposal.settings, made, how="price table", note=note), base)]


def _ranked(findings: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """(what pays, the most first; what does not); of cuts that exclude each other the best alone pays."""

    def saving(found: Finding) -> tuple[bool, float, float]:
        assert found.cost is not None
        if found.saves_hours is None:  # it makes the job run: the cheapest first
            return True, -(found.cost.usd if found.cost.usd is not None else 0.0), -found.cost.hours
        return found.saves_usd is not None, found.saves_usd or 0.0, found.saves_hours

    pays = sorted((found for found in findings if found.pays), key=saving, reverse=True)
    others = [found for found in findings if not found.pays]
    kept: list[Finding] = []
    for found in pays:
        group = found.proposal.instead
        better = [one.proposal.name for one in kept if group and one.proposal.instead == group]
        if better:
            others.append(replace(found, note=f"saves less than {better[0]}, and only one can be had"))
        else:
            kept.append(found)
    return kept, others


def _together(
    job: RunConfig, work: JobSize, base: Cost | None, pays: Sequence[Finding], planner: _Planner
) -> Finding | None:
    """All that pay, planned once more: savings do not add up."""
    settings: dict[str, Any] = {}
    shares, spot = 1.0, False
    reads = False
    for found in pays:
        settings = dict(found.proposal.settings) | settings if found.how == "planned" else settings
        reads |= found.proposal.reads
        if found.how == "counted" and found.cost is not None and base is not None:
            shares = found.cost.hours / base.hours
        spot |= found.how == "price table"
    spread = any(found.proposal.ways == "spread" for found in pays)
    proposal = Proposal(None, TOGETHER, settings, "spread" if spread else "own", reads=reads)
    try:
        variant = _variant(job, work, proposal)
    except UserError:
        return None
    cost = planner.cheapest(variant, planner.plan({TOGETHER: variant})[TOGETHER])
    if cost is None:
        return None
    if spread:
        settings |= _chosen(variant.config, cost)
    usd = cost.offer.usd_spot if spot else cost.usd
    made = replace(cost.offer, hours=cost.hours * shares)
    scaled = Cost(made, None if usd is None else usd * shares)
    others = {key: value for found in pays if found.how != "planned" for key, value in found.settings.items()}
    return _against(Finding(proposal, settings | others, scaled), base)


def _ran(base: Cost | None) -> dict[str, Any]:
    """What the planner chose for the config as it is written."""
    candidate = base.offer.row.candidate if base is not None else None
    return {} if candidate is None else {"dtype": candidate.dtype, "remat": candidate.remat}


def _why(rows: Sequence[Row]) -> str:
    """Why a config runs on no target."""
    found = []
    for row in rows:
        if row.memory is not None and row.capacity is not None and row.memory > row.capacity:
            found.append(f"{row.target}: too large by {say_bytes(row.memory - row.capacity)}")
        else:
            found.append(f"{row.target}: {row.note or row.status}")
    return "; ".join(dict.fromkeys(found)) or "it could not be planned"


def _dtype(job: RunConfig, target: Target) -> str:
    with written_for(target.platform):
        return str(compute_dtype(job.model.dtype).name)


def check_targets(names: Sequence[str]) -> None:
    """Of `--targets`. Raises: ConfigError."""
    if not names:
        raise ConfigError("--targets names nothing", wanted="h100-80gb:1,l4:1,cpu", fix="leave it out for this machine")
