"""Serving speed, compared with transformers, CTranslate2 and static batches.

    python -m benchmarks.serve

All sides load one export, a decoder of Llama's architecture with random weights, and answer the
same requests over HTTP, greedily: prompts of 16 to 256 tokens, 16 to 64 new ones. Each side starts
anew in every round, with as many threads as the machine has cores, and the order of the sides
rotates. First its answers are compared with the model's own. The command prints a table, ratios,
which goals they meet, and at the end one line of JSON.
"""

import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.load import Ask, Load, asks, closed_loop, poisson, texts
from benchmarks.peers.serving import READY
from benchmarks.served_model import CTRANSLATE2, MODEL, VOCABULARY, convert, greedy, make
from benchmarks.sides import (
    ROOT,
    Command,
    Machine,
    option_parser,
    print_json,
    rotated,
    spread,
    temporary_folder,
    warn,
)

OURS, OURS_INT8, STATIC = "ours", "ours int8", "ours static"
SIDES = {  # the module in benchmarks/peers, and its arguments
    OURS: ["serve_ours", "fp32"],
    OURS_INT8: ["serve_ours", "int8"],
    STATIC: ["serve_static"],
    "transformers": ["serve_transformers"],
    "transformers continuous": ["serve_transformers_continuous"],
    "ctranslate2 float32": ["serve_ctranslate2", "float32"],
    "ctranslate2 int8": ["serve_ctranslate2", "int8"],
}
EXACT = [name for name in SIDES if "int8" not in name]  # sides that compute in float32
CLIENTS = (1, 8, 32)
MOST = CLIENTS[-1]
USUAL = 0.7  # of a side's rate in the closed loop with MOST clients: its random arrivals
CURVE = (0.5, 0.85, 1.0)  # further rates of this engine, to find the one with another's p95
ARRIVALS = 1.25  # their time, of a closed loop's
START_SECONDS = 120.0  # that a side may take until it listens
CHECKED, CHECKED_TOKENS = 8, 24  # requests whose answers are compared, and their new tokens


@dataclass(frozen=True)
class Measured:
    """What a side did in a round."""

    agreed: int  # of CHECKED answers, how many were the model's own
    closed: dict[int, Load]  # by the number of clients
    arrivals: dict[float, Load]  # by the share of the rate of the closed loop
    streamed: Load | None  # arrivals at USUAL, as streams


Results = dict[str, list[Measured]]  # by side, one for each round


@dataclass(frozen=True)
class Goal:
    """What the median of a ratio should be."""

    ratio: str
    bound: float
    is_most: bool = False  # at most the bound, otherwise at least

    def is_met(self, figure: float) -> bool:
        return figure <= self.bound if self.is_most else figure >= self.bound


EQUAL_P95 = "requests/s at equal p95, random arrivals, ours / static"
GAPS = "time between tokens, ours, p99 / median"
GOALS = (
    Goal(f"tokens/s, ours / transformers, {MOST} clients", 4.0),
    *(
        Goal(f"tokens/s, {ours} / ctranslate2 {precision}, {clients} clients", 0.8)
        for ours, precision in ((OURS, "float32"), (OURS_INT8, "int8"))
        for clients in CLIENTS[1:]
    ),
    Goal(EQUAL_P95, 2.0),
    Goal(GAPS, 2.0, is_most=True),
)


def main() -> None:
    options = _options()
    machine = Machine()
    os.environ.update({"OMP_NUM_THREADS": str(os.cpu_count() or 1), "PYTHONPATH": str(ROOT)})
    results: Results = {name: [] for name in options.sides}
    with temporary_folder() as folder:
        sizes = {"num_layers": options.layers, "d_model": options.d_model}
        make(folder, {**MODEL, **sizes, "num_heads": options.d_model // 64}, VOCABULARY)
        if any(name.startswith(CTRANSLATE2) for name in options.sides):
            convert(folder)
        checks = [Ask(each.prompt, CHECKED_TOKENS) for each in islice(asks(0, VOCABULARY), CHECKED)]
        expected = greedy(folder, [each.prompt for each in checks], CHECKED_TOKENS)
        for number in range(options.rounds):
            machine.round_begins()
            for name in rotated(options.sides, number):
                machine.wait_until_quiet()
                with listening(name, folder) as url:
                    answers = asyncio.run(texts(url, checks))
                    agreed = sum(a == e for a, e in zip(answers, expected, strict=True))
                    if agreed < CHECKED and name in EXACT:
                        warn(f"{name}: {CHECKED - agreed} of {CHECKED} answers are not the model's")
                    results[name].append(measure(name, url, options.seconds, number, agreed))
                speed = results[name][-1].closed[MOST].tokens_a_second
                print(f"round {number + 1}, {name}: {speed:,.0f} tokens/s", file=sys.stderr)
    report(results, machine)


def _options() -> Any:
    parser = option_parser(__doc__)
    parser.set_defaults(rounds=2)
    parser.add_argument("--seconds", type=float, default=4.5, help="of each closed loop")
    parser.add_argument("--layers", type=int, default=MODEL["num_layers"])
    parser.add_argument("--d-model", type=int, default=MODEL["d_model"], help="a multiple of 64")
    names = list(SIDES)
    parser.add_argument("--sides", nargs="+", choices=names, default=names, metavar="SIDE")
    options = parser.parse_args()
    if options.d_model < 64 or options.d_model % 64:
        parser.error(f"--d-model = {options.d_model}: must be a multiple of 64, the heads' width")
    return options


@contextlib.contextmanager
def listening(name: str, folder: Path) -> Iterator[str]:
    """The URL of a side, in a process of its own.

    Raises:
        RuntimeError: if it ends, or does not listen in time.
    """
    module, *arguments = SIDES[name]
    log = folder / "side.log"
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", str(folder), *arguments]
    with Command(command, dict(os.environ), log) as running:
        deadline = time.monotonic() + START_SECONDS
        while True:
            text = log.read_text()
            if lines := [line for line in text.splitlines() if line.startswith(READY)]:
                break
            if running.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not listen:\n{text[-3000:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{lines[0].removeprefix(READY)}"


def measure(name: str, url: str, seconds: float, number: int, agreed: int) -> Measured:
    """All loads of a side. Those of a round are the same for all sides, but for the rate of
    arrivals."""
    seed = 1000 * (number + 1)
    closed = {
        clients: asyncio.run(closed_loop(url, clients, seconds, asks(seed + clients, VOCABULARY)))
        for clients in CLIENTS
    }
    fastest = closed[MOST].requests_a_second

    def arrive(share: float, streams: bool = False) -> Load:
        # Other prompts each time: a slot of this engine's may still hold an earlier one.
        requests = asks(seed + 100 + round(100 * share) + streams, VOCABULARY)
        load = poisson(url, share * fastest, ARRIVALS * seconds, requests, seed, streams)
        return asyncio.run(load)

    shares = [USUAL, *CURVE] if name == OURS else [USUAL]
    streamed = arrive(USUAL, streams=True) if name == OURS else None
    return Measured(agreed, closed, {share: arrive(share) for share in shares}, streamed)


def report(results: Results, machine: Machine) -> None:
    print_table(results)
    ratios = compare(results)
    print()
    for name, values in ratios.items():
        print(f"{name:62}{spread(values)}")
    goals = judge(ratios)
    for name, goal in goals.items():
        print(f"{name:62}{goal['figure']:8.2f}, goal {goal['goal']}: {goal['met']}")
    for name, each in results.items():
        agreed = min(measured.agreed for measured in each)
        print(f"greedy answers equal to the model's own, {name:25} {agreed} of {CHECKED}")
    print_json(
        {
            "benchmark": "serve",
            "results": {name: [_as_json(m) for m in each] for name, each in results.items()},
            "ratios": {name: [round(v, 4) for v in values] for name, values in ratios.items()},
            "medians": {n: round(statistics.median(values), 4) for n, values in ratios.items()},
            "goals": goals,
            **machine.summary(),
        }
    )


def print_table(results: Results) -> None:
    head = f"{'side':25}{'load':16}{'tokens/s':>28}{'requests/s':>24}"
    print(f"{head}{'p50 s':>8}{'p95 s':>8}{'p99 s':>8}")
    for name, each in results.items():
        loads = {f"{count} at once": [m.closed[count] for m in each] for count in CLIENTS}
        for share in each[0].arrivals:
            loads[f"arrivals at {share:.0%}"] = [m.arrivals[share] for m in each]
        loads["  as streams"] = [m.streamed for m in each if m.streamed is not None]
        for load, measured in loads.items():
            if measured:
                tokens = spread([m.tokens_a_second for m in measured], 0)
                requests = spread([m.requests_a_second for m in measured])
                times = "".join(
                    f"{statistics.median(values):8.2f}"
                    for values in zip(*(m.latency for m in measured), strict=True)
                )
                print(f"{name:25}{load:16}{tokens:>28}{requests:>24}{times}")
        for label, part in (("first token", "first_token"), ("gap of tokens", "gaps")):
            for values in (getattr(m.streamed, part) for m in each if m.streamed is not None):
                times = ", ".join(f"{1000 * value:.1f}" for value in values)
                print(f"{name:25}{label}: p50, p95, p99 in ms: {times}")


def compare(results: Results) -> dict[str, list[float]]:
    """Each ratio, taken within each round. A ratio of a side that was not run is left out."""
    ratios: dict[str, list[float]] = {}
    ours = results.get(OURS, [])
    for one, name, counts in (
        (OURS, "transformers", [MOST]),
        (OURS, "transformers continuous", [MOST]),
        (OURS, "ctranslate2 float32", CLIENTS),
        (OURS_INT8, "ctranslate2 int8", CLIENTS),
        (OURS_INT8, OURS, CLIENTS),
        (OURS, STATIC, [MOST]),
    ):
        for count in counts:
            ratios[f"tokens/s, {one} / {name}, {count} clients"] = [
                own.closed[count].tokens_a_second / other.closed[count].tokens_a_second
                for own, other in zip(results.get(one, []), results.get(name, []), strict=False)
            ]
    ratios[EQUAL_P95] = [
        ratio_at_equal_p95(list(own.arrivals.values()), static.arrivals[USUAL])
        for own, static in zip(ours, results.get(STATIC, []), strict=False)
    ]
    ratios[GAPS] = [
        own.streamed.gaps[-1] / own.streamed.gaps[0]
        for own in ours
        if own.streamed is not None and own.streamed.gaps
    ]
    return {name: values for name, values in ratios.items() if values}


def judge(ratios: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Each goal whose ratio was measured: its figure, what it should be, and yes or no."""
    return {
        goal.ratio: {
            "figure": round(figure := statistics.median(ratios[goal.ratio]), 4),
            "goal": f"{'at most' if goal.is_most else 'at least'} {goal.bound}",
            "met": "yes" if goal.is_met(figure) else "no",
        }
        for goal in GOALS
        if goal.ratio in ratios
    }


def ratio_at_equal_p95(loads: Sequence[Load], other: Load) -> float:
    """How many times the other's requests a second come with the other's p95 latency.

    Between the measured loads, the rate is interpolated by the latency. If even the highest rate is
    quicker, that rate counts, so the ratio is at least this; if even the lowest is slower, 0.
    """
    ordered = sorted(loads, key=lambda load: load.requests_a_second)
    if ordered[0].p95 > other.p95:
        return 0.0
    rate = ordered[0].requests_a_second
    for below, above in pairwise(ordered):
        if above.p95 > other.p95:
            part = (other.p95 - below.p95) / (above.p95 - below.p95)
            rate += part * (above.requests_a_second - below.requests_a_second)
            break
        rate = above.requests_a_second
    return rate / other.requests_a_second


def _as_json(measured: Measured) -> dict[str, Any]:
    loads = {f"closed {count}": load for count, load in measured.closed.items()}
    loads |= {f"arrivals {share}": load for share, load in measured.arrivals.items()}
    if measured.streamed is not None:
        loads["streamed"] = measured.streamed
    return {"agreed": measured.agreed, **{name: _rounded(load) for name, load in loads.items()}}


def _rounded(load: Load) -> dict[str, Any]:
    return {
        name: [round(v, 4) for v in value] if isinstance(value, list) else round(value, 2)
        for name, value in vars(load).items()
    }


if __name__ == "__main__":
    main()
