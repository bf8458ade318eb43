"""The slowest operators of a profiler's trace: `python -m orchestrator.learn.operators TRACE`.

TRACE is a Chrome trace, such as `train.profile_steps` writes. This file imports only the standard
library: a training runs it in a process of its own, since it takes seconds of a core.
"""

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = 30
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
ON_CPU = ("cpu_op", "user_annotation", "cuda_runtime")


@dataclass
class Operator:
    """All calls of one operator; times are in microseconds."""

    calls: int = 0
    total: float = 0.0
    own: float = 0.0  # without the operators that it called


def table(trace: bytes) -> str:
    """The slowest operators of a trace, on the GPU first, where there was one."""
    events = json.loads(trace)["traceEvents"]
    complete = [event for event in events if event.get("ph") == "X"]
    parts = []
    for title, categories in (("GPU", ON_GPU), ("CPU", ON_CPU)):
        operators = operators_of(event for event in complete if event.get("cat") in categories)
        if operators:
            parts.append(_table(title, operators))
    return "\n".join(parts)


def operators_of(events: Iterable[dict[str, Any]]) -> dict[str, Operator]:
    """Calls and times by name. An event lies within another of its thread that ends later."""
    operators: dict[str, Operator] = defaultdict(Operator)
    open_calls: dict[Any, list[tuple[float, Operator]]] = defaultdict(list)  # by thread
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        calls = open_calls[event["pid"], event["tid"]]
        while calls and calls[-1][0] <= event["ts"]:
            calls.pop()
        operator = operators[event["name"]]
        operator.calls += 1
        operator.total += event["dur"]
        operator.own += event["dur"]
        if calls:
            calls[-1][1].own -= event["dur"]
        calls.append((event["ts"] + event["dur"], operator))
    return operators


def _table(title: str, operators: dict[str, Operator]) -> str:
    slowest = sorted(operators.items(), key=lambda item: -item[1].own)
    busy = sum(operator.own for _, operator in slowest)
    lines = [f"{title}: {busy / 1e3:,.1f} ms", "    own ms  share   total ms    calls  operator"]
    for name, operator in slowest[:ROWS]:
        own, total = operator.own / 1e3, operator.total / 1e3
        share = operator.own / max(busy, 1e-9)
        lines.append(f"{own:10,.1f}  {share:5.1%} {total:10,.1f} {operator.calls:8,}  {name}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    content = Path(sys.argv[1]).read_bytes()
    sys.stdout.write(table(gzip.decompress(content) if sys.argv[1].endswith(".gz") else content))
