"""Inject every fault and print what held: `python tests/faults [--only WORDS] [--out DIR [--again]]`."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parents[1] / "benchmarks")]

from report import publish  # noqa: E402

from faults.fault import Fault  # noqa: E402
from faults.job import NUM_STEPS, SAVE_STEPS, Job  # noqa: E402
from faults.table import every  # noqa: E402

ROWS = "faults.rows.jsonl"
COLUMNS = {"fault": "", "moment": "", "promised": "", "held": "", "lost_steps": "d", "equal": "", "said": ""}


def inject(fault: Fault, job: Job) -> dict[str, Any]:
    """A row of the table."""
    started = time.monotonic()
    row: dict[str, Any] = {"fault": fault.name, "moment": fault.moment, "promised": fault.promised}
    try:
        came = fault.inject(job)
        row |= {"held": "yes", "lost_steps": came.lost_steps, "equal": came.equal, "said": came.said}
        row["equal"] = None if came.equal is None else "yes"
    except Exception as error:  # a fault that broke the runner did not hold either
        row |= {"held": "NO", "said": f"{type(error).__name__}: {error}"}
    return row | {"seconds": round(time.monotonic() - started, 1)}


def name_of(row: Mapping[str, Any]) -> str:
    """As of the fault that it is of."""
    return f"{row['fault']}, {row['moment']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one fault of each kind")
    parser.add_argument("--only", nargs="*", default=[], help="faults whose name or moment holds one of these words")
    parser.add_argument("--out", type=Path, help="folder for faults.json")
    parser.add_argument("--again", action="store_true", help="keep the rows in --out that held, and inject the others")
    parser.add_argument("--parallel", type=int, default=2, help="faults at a time")
    given = parser.parse_args()
    chosen = [fault for fault in every() if not given.only or any(word in str(fault) for word in given.only)]
    if given.quick:
        chosen = list({fault.name: fault for fault in reversed(chosen)}.values())[::-1]
    kept: list[dict[str, Any]] = []
    if given.again:
        names = [str(fault) for fault in every()]
        before = map(json.loads, (given.out / ROWS).read_text().splitlines())
        kept = [row for row in before if row["held"] == "yes" and name_of(row) in names]
        chosen = [fault for fault in chosen if str(fault) not in {name_of(row) for row in kept}]
    if given.out is not None:  # row by row, so that what takes an hour can be gone on with
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / ROWS).write_text("".join(json.dumps(row) + "\n" for row in kept))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="jaxlean-faults-") as temporary:
        Path(temporary).chmod(0o755)  # other users' processes look into it
        job = Job(Path(temporary) / "job", Path(temporary) / "compiled")
        job.make()
        with ThreadPoolExecutor(given.parallel) as pool:
            for row in pool.map(lambda fault: inject(fault, job), chosen):
                rows.append(row)
                if given.out is not None:
                    with (given.out / ROWS).open("a") as out:
                        out.write(json.dumps(row) + "\n")
                print(f"{len(rows)}/{len(chosen)} {row['fault']}, {row['moment']}: {row['held']}", flush=True)
                if row["held"] != "yes":
                    print(row["said"], flush=True)
    order = [str(fault) for fault in every()]
    rows = sorted([*kept, *rows], key=lambda row: order.index(name_of(row)))
    held = sum(row["held"] == "yes" for row in rows)
    resumed = [row for row in rows if row.get("equal") == "yes"]
    config = {
        "steps": NUM_STEPS, "save_steps": SAVE_STEPS, "faults": len(rows), "held": held,
        "ended_in_the_same_bytes": len(resumed),
        "most_steps_lost": max((row["lost_steps"] or 0 for row in resumed), default=0),
    }  # fmt: skip
    publish("faults", config, rows, COLUMNS, given.out)
    if given.out is not None and held == len(order):
        (given.out / ROWS).unlink()  # all of them are in faults.json
    sys.exit(held != len(rows))


if __name__ == "__main__":
    main()
