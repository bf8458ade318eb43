"""How good the tasks are on small public data sets, beside what simple methods reach.

    python -m benchmarks.quality [ROW ...] [--seed 1]

Each row (`quality_rows.py`) is a job that a user could write, run by a user's command,
`orchestrator run JOB --until evaluate`. The data sets lie in ORCHESTRATOR_DATA,
with their origin and owners. Writes docs/quality.md, prints the table and, last, one line of JSON.
"""

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality_rows import ROWS, Row
from benchmarks.sides import COMMAND, ROOT, print_json

PAGE = ROOT / "docs" / "quality.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, default=0, help="of weights and sample order")
    parser.add_argument("--keep", type=Path, help="a folder for the runs, kept and continued")
    options = parser.parse_args()
    data = Path(os.environ.get("ORCHESTRATOR_DATA", ROOT.parent / "shared" / "data"))
    if not data.is_dir():
        parser.error(f"{data}: no such folder: set ORCHESTRATOR_DATA to where the data sets lie")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="quality-") as temporary:
        folder = options.keep or Path(temporary)
        for name in options.rows or ROWS:
            results[name] = run(name, data, folder.absolute(), options.seed)
            print(line(name, results), flush=True)
    if not options.rows:
        PAGE.write_text(page(results, options.seed))
    print_json({"benchmark": "quality", "seed": options.seed, "rows": results})


def run(name: str, data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Run a row's job as a user would, up to its report."""
    row, own = ROWS[name], folder / name
    own.mkdir(parents=True, exist_ok=True)
    job = {"name": name, "storage": str(folder / "runs"), "cluster": {"workers": 2}}
    job |= row.job(data, own)
    job["train"] = {**job.get("train", {}), "seed": seed}
    if row.begins_with is not None:
        (model,) = (folder / "runs" / row.begins_with).glob("train-*/export")
        job["model"] = {"init_from": str(model), "dropout": job["model"].get("dropout", 0.0)}
        job["tokenizer"] = {}
    path = own / "job.yaml"
    path.write_text(yaml.safe_dump(absolute(job, own)))
    began = time.monotonic()
    orchestrate("run", str(path), "--until", "evaluate")
    seconds = time.monotonic() - began
    stages = json.loads(orchestrate("status", str(path), "--json"))["stages"]
    report = json.loads((Path(stages["evaluate"]["path"]) / "report.json").read_text())
    return {
        "figures": row.read(report),
        "baselines": {
            other: row.read({**report, "metrics": metrics})
            for other, metrics in report["baselines"].items()
        },
        "train_seconds": round(stages["train"]["seconds"]),
        "all_seconds": round(seconds),
        "steps": report["steps"],
        "counted": report["counted"],
    }


def absolute(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Names of the row's own files as paths."""

    def path(source: Any) -> Any:
        if isinstance(source, list):
            return [path(one) for one in source]
        return str(folder / source) if isinstance(source, str) else source

    own = {k: path(v) for k, v in job["data"].items() if k.endswith("source")}
    return {**job, "data": {**job["data"], **own}}


def orchestrate(*arguments: str) -> str:
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"orchestrator {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def line(name: str, rows: dict[str, Any]) -> str:
    """A row of the page."""
    row, result = ROWS[name], rows[name]
    (_, value), *others = result["figures"].items()
    beside = [f"{other} {next(iter(f.values())):.3f}" for other, f in result["baselines"].items()]
    cells = [
        row.what,
        row.figure,
        f"**{value:.3f}**" + "".join(f", {other} {v:.3f}" for other, v in others),
        judged(row, value, rows),
        "; ".join([*beside, row.beside] if row.beside else beside),
        f"{result['steps']:,} in {result['train_seconds']:,} s",
    ]
    return "| " + " | ".join(cells) + " |"


def judged(row: Row, value: float, rows: dict[str, Any]) -> str:
    """What a figure is to reach, and whether it does."""
    if row.better_than in rows:
        goal = next(iter(rows[row.better_than]["figures"].values()))
        target, reached = f"> {goal:.3f}, the row without that", value > goal
    elif not 0 < row.target < math.inf:
        return ""
    elif row.fewer:
        target, reached = f"< {row.target:g}", value < row.target
    else:
        target, reached = f">= {row.target:g}", value >= row.target
    return f"{target} {'✓' if reached else '✗'}"


def page(results: dict[str, Any], seed: int) -> str:
    commit = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=True)
    return "\n".join(
        [
            "# Quality",
            "",
            "Small public data sets, at most 15 minutes of training each, two workers of a core.",
            f"Made by `make quality`, {datetime.date.today()}, commit {done.stdout.strip()}, seed "
            f"{seed}; the jobs are in `benchmarks/quality_jobs.py`.",
            "What else was tried, and other seeds, is in [the log](log.md).",
            "",
            "| data | figure | this model | target | beside | steps |",
            "| --- | --- | --- | --- | --- | --- |",
            *[line(name, results) for name in results],
            "",
            *[
                f"{ROWS[name].what}: {each['counted']}\n"
                for name, each in results.items()
                if each["counted"]
            ],
        ]
    )


if __name__ == "__main__":
    main()
