"""A process that plans one target: `python -m jaxlean.plan.worker`, a job as JSON on stdin, findings as JSON lines.

    {"starting": candidate}     before a compilation, so that who waits knows what for
    {"row": row}                a candidate, and what became of it
    {"done": true}              the last line

A compiler that crashes or hangs takes only this process with it.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Read the job, print the lines."""
    # stdout is for the lines alone; what libraries print goes to stderr
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)

    from jaxlean.config import build
    from jaxlean.plan.search import search
    from jaxlean.plan.target import parse

    def say(**line: Any) -> None:
        lines.write(json.dumps(line, default=str) + "\n")
        lines.flush()

    rows = search(
        build(job["config"]),
        parse(job["target"], job["hardware"]),
        length=job["length"],
        most=job["most"],
        skip=frozenset(job["skip"]),
        starting=lambda candidate: say(starting=candidate.as_dict()),
    )
    for row in rows:
        say(row=row.as_dict())
    say(done=True)


if __name__ == "__main__":
    main()
