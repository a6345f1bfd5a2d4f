"""The page: what was found of the runs, filled into `template/page.html`. It asks no network for anything.

Everything is in the one file, and its content security policy forbids the rest: no address is opened, and no script
runs but the page's own, known by its hash. Names and texts are escaped by jinja2.
"""

import base64
import hashlib
import shlex
from collections.abc import Sequence

from jaxlean import __version__
from jaxlean.report import account, bars, curves, facts, receipt, settings
from jaxlean.report.chart import SIZE
from jaxlean.report.read import Run

# By which a file is known as a report, which another report may replace.
GENERATOR = "jaxlean report"
# As many colours as colour-blind people tell apart on either ground (`template/style.css`); then the same, dashed.
NUM_COLOURS = 5
_RESUMABLE = ("preempted", "budget", "unfinished")


def render(runs: Sequence[Run]) -> str:
    """HTML of the whole page, of one run or of several in the same charts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jaxlean.report", "template"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = _source(environment, "script.js")
    colours = [run_class(place) for place in range(len(runs))]
    return environment.get_template("page.html").render(
        runs=runs,
        one=runs[0] if len(runs) == 1 else None,
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        generator=f"{GENERATOR} {__version__}",
        style=_source(environment, "style.css"),
        script=script,
        script_hash=_hash(script),
        colours=colours,
        shown=[{"name": run.name, "colour": colour} for run, colour in zip(runs, colours, strict=True)],
        facts=facts,
        same_data=facts.data(runs[0]) if len({facts.data(run) for run in runs}) == 1 else "",
        compared=facts.compared(runs),
        learning=curves.learning(runs),
        course=curves.course(runs),
        cost=curves.cost(runs),
        bars=[found for found in (bars.phases(runs), bars.memory(runs)) if found is not None],
        account=account.rows(runs),
        receipts=receipt.receipts(runs),
        no_receipt=receipt.missing(runs),
        differences=settings.differences(runs) if len(runs) > 1 else [],
        changed=settings.changed(runs[0]) if len(runs) == 1 else [],
        quality=facts.qualities(runs[0]) if len(runs) == 1 else ([], []),
        versions=[facts.versions(run) for run in runs],
        commands=[line for run in runs for line in commands(run)],
        resumable=any(run.status in _RESUMABLE for run in runs),
        size=SIZE,
    )


def run_class(place: int) -> str:
    """The classes of a run's lines and swatches.

    >>> run_class(1), run_class(6)
    ('run-1', 'run-1 dashed')
    """
    return f"run-{place % NUM_COLOURS}" + (" dashed" if place >= NUM_COLOURS else "")


def commands(run: Run) -> list[str]:
    """What goes on with a run that came to no end, and what does it again, beside it.

    >>> from pathlib import Path
    >>> for command in commands(Run(Path("runs/a b"), "a b", "preempted", None, {})):
    ...     print(command)
    jaxlean finetune 'runs/a b/config.yaml' --resume
    jaxlean finetune 'runs/a b/config.yaml' 'output_dir=runs/a b-again'
    """
    start = ["jaxlean", "finetune", str(run.folder / "config.yaml")]
    found = [[*start, "--resume"]] if run.status in _RESUMABLE else []
    return [shlex.join(words) for words in (*found, [*start, f"output_dir={run.folder}-again"])]


def _source(environment: "object", name: str) -> str:
    source, *_ = environment.loader.get_source(environment, name)  # type: ignore[attr-defined]
    return source


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
