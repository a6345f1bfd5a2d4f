"""100,000 rows of 1 KB through `jaxlean curate`: seconds of each step, memory, and the MinHash library it uses.

    pip install '.[curate]' datasketch                    # datasketch only for --libraries
    python benchmarks/curate.py --text wikitext2_valid.txt gsm8k_train.jsonl [--quick] [--out DIR] [--runs 3]
                                [--rows 100000] [--processes 2] [--engine ray] [--libraries]

The rows are sentences of the given files, drawn by a fixed seed until a row has 1,000 characters; one row in ten is the
copy of another, one in ten a copy with one word changed. Each run is the command itself, in processes of its own, over
exact_duplicates, near_duplicates and quality, with their defaults.

    seconds          of the whole command, starting Python and writing the files included
    cpu_seconds      of all its processes together
    memory           at its peak, of all its processes together, pages they share counted once (PSS, every 0.2 s)

--libraries: signatures of 128 places of the shingles of 2,000 rows (5 characters) by rensa and by datasketch, in one
process; for datasketch the shingles as bytes, as its documentation shows, and already hashed.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import median, publish

COLUMNS = {
    "what": "", "rows": ",d", "dropped": ",d", "seconds": ",.1f", "cpu_seconds": ",.1f", "memory_gb": ".2f",
    "spread": ".1f",
}  # fmt: skip
STEPS = ("exact_duplicates", "near_duplicates", "quality")
_SHARE = 10  # one row in ten


def write_rows(files: list[Path], count: int, out: Path) -> None:
    """The rows, the same for the same files."""
    rng = random.Random(0)
    sentences = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line) if file.suffix == ".jsonl" else line
            text = " ".join(str(value) for value in row.values()) if isinstance(row, dict) else row
            sentences += [part for part in re.split(r"(?<=[.!?])\s", text) if len(part) > 20]
    rows = []
    for _ in range(count):
        row = ""
        while len(row) < 1000:
            row += rng.choice(sentences) + " "
        rows.append(row[:1024])
    for _ in range(count // _SHARE):
        rows[rng.randrange(count)] = rows[rng.randrange(count)]
        words = rows[rng.randrange(count)].split(" ")
        words[rng.randrange(len(words))] = "changed"
        rows[rng.randrange(count)] = " ".join(words)
    with out.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps({"text": row}) + "\n" for row in rows)


def children(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in task.read_text().split() for one in children(int(child))]
        except OSError:
            continue
    return found


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process and all that it started."""
    total = 0
    for one in children(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:  # has just ended
            continue
        total += 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    return total


def run(file: Path, folder: Path, processes: int, engine: str) -> dict[str, Any]:
    """The report of one command, with its seconds and memory."""
    config = folder / "run.yaml"
    config.write_text(f"curate: {{steps: [{', '.join(STEPS)}], processes: {processes}, engine: {engine}}}\n")
    command = [sys.executable, "-m", "jaxlean", "curate", str(config), f"data.train={file}", f"output_dir={folder}/out"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory_bytes(process.pid))
        time.sleep(0.2)
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return told | {"seconds": seconds, "cpu_seconds": cpu, "memory_gb": peak / 1e9}


def libraries(file: Path, count: int) -> list[dict[str, Any]]:
    """Seconds for the signatures of 100,000 rows, from those of a few."""
    from datasketch import MinHash

    from jaxlean.data.dedupe import normalise
    from jaxlean.data.minhash import shingles, signatures

    with file.open(encoding="utf-8") as opened:
        texts = [normalise(json.loads(next(opened))["text"]) for _ in range(count)]
    hashes, offsets = shingles(texts)

    def timed(what: str, compute: Any) -> dict[str, Any]:
        start = time.process_time()
        compute()
        seconds = (time.process_time() - start) * 100_000 / count
        return {"what": f"128 hashes of 100,000 rows: {what}", "cpu_seconds": seconds}

    def as_bytes() -> None:
        for text in texts:
            MinHash(num_perm=128).update_batch([text[i : i + 5].encode() for i in range(len(text) - 4)])

    def hashed() -> None:
        short = (hashes >> np.uint64(32)).tolist()
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            MinHash(num_perm=128, hashfunc=int).update_batch(short[start:stop])

    return [
        timed("rensa", lambda: signatures(hashes, offsets)),
        timed("datasketch", as_bytes),
        timed("datasketch, hashed before", hashed),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files of text or JSON lines")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--engine", default="processes", choices=["processes", "ray"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--libraries", action="store_true", help="compare rensa with datasketch too")
    parser.add_argument("--quick", action="store_true", help="10,000 rows, one run")
    parser.add_argument("--out", type=Path, help="folder for curate.json")
    args = parser.parse_args()
    count, runs = (10_000, 1) if args.quick else (args.rows, args.runs)
    with tempfile.TemporaryDirectory(prefix="jaxlean-curate-") as scratch:
        file = Path(scratch) / "rows.jsonl"
        write_rows(args.text, count, file)
        told = []
        for i in range(runs):
            folder = Path(scratch) / str(i)
            folder.mkdir()
            told.append(run(file, folder, args.processes, args.engine))
        rows: list[dict[str, Any]] = []
        for step in [one["step"] for one in told[0]["steps"]]:
            own = [next(s for s in one["steps"] if s["step"] == step) for one in told]
            seconds = [s["seconds"] for s in own]
            rows.append({"what": step, "rows": own[0]["rows"], "dropped": own[0]["dropped"], "seconds": median(seconds),
                         "spread": max(seconds) - min(seconds)})  # fmt: skip
        whole = [one["seconds"] for one in told]
        rows.append({
            "what": "the command", "rows": count, "dropped": count - told[0]["kept"], "seconds": median(whole),
            "spread": max(whole) - min(whole), "cpu_seconds": median([one["cpu_seconds"] for one in told]),
            "memory_gb": max(one["memory_gb"] for one in told),
        })  # fmt: skip
        if args.libraries:
            rows += libraries(file, min(count, 2000))
    config = {"files": [file.name for file in args.text], "rows": count, "processes": args.processes, "runs": runs,
              "engine": args.engine}  # fmt: skip
    publish("curate" if args.engine == "processes" else "curate_ray", config, rows, COLUMNS, args.out)


if __name__ == "__main__":
    main()
