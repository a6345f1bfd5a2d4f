"""A process that plans one target: `python -m jaxlean.plan.worker`, a line of JSON on stdin, the findings on stdout.

    {"starting": candidate}     before a compilation, so that who waits knows what for
    {"row": row}                a candidate, and what became of it
    {"done": true}              the last line

A compiler that crashes or hangs takes only this process with it. When stdin ends, whoever asked is gone: so is this.
"""

import json
import os
import sys
import threading
from typing import Any


def main() -> None:
    """Read the job, print the lines."""
    # stdout is for the lines alone; what libraries print goes to stderr
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_who_asked, daemon=True).start()

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
        ways=job["ways"],
        most=job["most"],
        skip=frozenset(job["skip"]),
        starting=lambda candidate: say(starting=candidate.as_dict()),
    )
    for row in rows:
        say(row=row.as_dict())
    say(done=True)


def _leave_with_who_asked() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
