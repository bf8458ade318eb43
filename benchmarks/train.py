"""Training beside a plain torchrun script, Hugging Face's Trainer and Lightning.

    python -m benchmarks.train

One model, the same rows, fused AdamW, one batch size and the same cores for all. Every side is
started anew in every round, in an order that moves on from round to round. Prints a table, ratios,
and at the end one line of JSON.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.sides import (
    Engine,
    Machine,
    Started,
    Steps,
    check_niceness,
    parser,
    print_json,
    rotated,
    running_ray,
    spread,
    temporary_folder,
)
from orchestrator.data.sample_order import SampleOrder
from orchestrator.data.shards import ShardReader
from orchestrator.infer.trained_model import load_processor
from orchestrator.job.file import load_job
from orchestrator.learn.batches import Batches
from orchestrator.learn.precision import choose
from orchestrator.learn.world import World
from orchestrator.storage.artifact import PreparedData, Training
from orchestrator.storage.folder import Folder
from orchestrator.train import preload

BATCH, LENGTH = 16, 256
JOB = {
    "name": "benchmark",
    "data": {"source": "python-stdlib"},
    "tokenizer": {"vocab_size": 2048},
    "model": {"num_layers": 4, "d_model": 192, "num_heads": 6, "max_seq_len": LENGTH},
}
TRAIN = {
    "optimizer": "adamw",
    "global_batch_size": BATCH,
    "lr": 1e-3,
    "warmup_steps": 0,
    "min_lr_ratio": 1.0,  # a constant rate, which every side knows
    "eval_rows": BATCH,
}
SKIPPED = 10  # steps before the steady state
SAVED_EVERY = 10  # steps, where checkpoints are measured

TORCHRUN = ["torch.distributed.run", "--standalone"]
PLAIN = "benchmarks.peers.torchrun_script"
TRANSFORMERS = "benchmarks.peers.transformers_trainer"
LIGHTNING = "benchmarks.peers.lightning_trainer"


@dataclass(frozen=True)
class Side:
    """What is started: this engine with overrides of its job, or a peer's module."""

    threads: int  # of each process
    module: Sequence[str] = ()  # none: this engine
    options: Sequence[str] = ()  # overrides of the job, or what stands behind the peer's folder
    environment: Mapping[str, str] = field(default_factory=dict)  # besides the benchmark's own


SAVING = ["cluster.workers=2", f"train.checkpoint_every={SAVED_EVERY}"]
SIDES = {
    "ours 1": Side(1, options=["cluster.workers=1"]),
    "torchrun 1": Side(1, [*TORCHRUN, "--nproc_per_node=1", "-m", PLAIN]),
    "ours 2": Side(1, options=["cluster.workers=2"]),
    "torchrun 2": Side(1, [*TORCHRUN, "--nproc_per_node=2", "-m", PLAIN]),
    "torchrun 2, memory kept": Side(
        1, [*TORCHRUN, "--nproc_per_node=2", "-m", PLAIN], environment=preload.KEPT_MEMORY
    ),
    "ours 2, saving": Side(1, options=SAVING),
    "ours 2, deterministic": Side(1, options=["cluster.workers=2", "train.deterministic=true"]),
    "transformers 1x2": Side(2, [TRANSFORMERS]),
    "transformers 2x1": Side(1, [*TORCHRUN, "--nproc_per_node=2", "-m", TRANSFORMERS]),
    "transformers 1x2 bf16": Side(2, [TRANSFORMERS], ["bf16"]),
    "lightning 1x2": Side(2, [LIGHTNING], ["1"]),
    "lightning 2x1": Side(1, [LIGHTNING], ["2"]),
}
KILLED = "ours 2, killed"
TRAINERS = ["transformers 1x2", "transformers 2x1", "lightning 1x2", "lightning 2x1"]

Results = dict[str, list[Steps]]  # by side, one a round


def main() -> None:
    options = _options()
    machine = Machine()
    results: Results = {}
    recoveries: list[dict[str, float]] = []
    with temporary_folder() as folder:
        train = {**TRAIN, "steps": options.steps, "eval_every": 10 * options.steps}
        engine = Engine(folder, {**JOB, "train": train})
        prepare(engine, machine, folder)
        for number in range(options.rounds):
            machine.round_begins()
            for name in rotated(options.sides, number):
                if name == KILLED:
                    recoveries.append(recover(engine, machine, options.steps))
                    print(f"round {number + 1}, {name}: {recoveries[-1]}", file=sys.stderr)
                    continue
                steps = run(SIDES[name], engine, machine, folder)
                results.setdefault(name, []).append(steps)
                figures = f"{speed(steps):,.0f} tokens/s, first step after {steps.start:.1f} s"
                print(f"round {number + 1}, {name}: {figures}", file=sys.stderr)
    report(results, recoveries, machine)


def _options() -> Any:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=100, help=f"the first {SKIPPED} do not count")
    names = [*SIDES, KILLED]
    made.add_argument("--sides", nargs="+", choices=names, default=names, metavar="SIDE")
    options = made.parse_args()
    if options.steps < SKIPPED + 5:
        made.error(f"--steps = {options.steps}: must be {SKIPPED + 5} or more")
    return options


def prepare(engine: Engine, machine: Machine, folder: Path) -> None:
    """Prepare the job's data, and write its settings and the rows of its steps for the peers."""
    prepared = PreparedData.load(Folder(str(engine.prepare(machine))))
    assert prepared is not None
    job = load_job(str(engine.job), [])
    reader = ShardReader(prepared, "train")
    order = SampleOrder(reader.shard_rows, job.train.seed)
    assert job.train.steps is not None
    reader.read(order.rows(0, job.train.steps * BATCH))["tokens"].tofile(folder / "rows.bin")
    task, world = job.build_task(), World()
    processor = load_processor(task, prepared)
    torch.set_num_threads(1)
    model = task.build_model(processor.vocab_size, processor.num_outputs)
    choice = choose(task, model, Batches(prepared, job.train, world).first(), world)
    print(f"torchrun computes in {choice.precision}: {choice.reason}", file=sys.stderr)
    keys = ("steps", "seed", "lr", "betas", "weight_decay", "grad_clip")
    work = {
        "model": job.model.model_dump(),
        "vocab_size": processor.vocab_size,
        "batch": BATCH,
        "bf16": choice.precision == "bf16",
        **{key: getattr(job.train, key) for key in keys},
    }
    (folder / "work.json").write_text(json.dumps(work))


def run(side: Side, engine: Engine, machine: Machine, folder: Path) -> Steps:
    os.environ["OMP_NUM_THREADS"] = str(side.threads)
    if not side.module:
        return run_ours(side, engine, machine)
    machine.wait_until_quiet()
    command = [sys.executable, "-m", *side.module, str(folder), *side.options]
    with Started(command, {**os.environ, **side.environment}, folder / "peer.log") as started:
        lines = [line for line in started.output().splitlines() if line.startswith('{"ready"')]
    line = json.loads(lines[-1])
    check_niceness({line["niceness"]})
    return Steps(started.at, line["ready"], line["ends"], line["loss"])


def run_ours(side: Side, engine: Engine, machine: Machine) -> Steps:
    with (
        running_ray(machine) as environment,
        engine.start("train", side.options, environment) as started,
    ):
        started.output()
    ((ready, *begins),) = [times for (rank, _), times in engine.workers().items() if rank == 0]
    # A step ends where the next one begins; when the last one ended is not known.
    return Steps(started.at, ready, begins[1:], _take_training(engine))


def recover(engine: Engine, machine: Machine, steps: int) -> dict[str, float]:
    """Kill the second worker half-way through a training that is twice as long."""
    os.environ["OMP_NUM_THREADS"] = "1"
    overrides = [*SAVING, f"train.steps={2 * steps}"]
    with (
        running_ray(machine) as environment,
        engine.start("train", overrides, environment) as started,
    ):
        process, ready = _second_worker_at(steps, engine, started)
        os.kill(process, signal.SIGKILL)
        killed = time.time()
        started.output()
    _take_training(engine)
    workers = engine.workers()
    (after,) = [times for (rank, p), times in workers.items() if rank == 1 and p != process]
    return {
        "next_step_after": after[2] - killed,  # where the second one after the restart begins
        "trained_before": killed - ready,
    }


def _second_worker_at(step: int, engine: Engine, started: Started) -> tuple[int, float]:
    """The second worker's process once it has come to a step, and when it was ready."""
    while started.process.poll() is None:
        for (rank, process), times in engine.workers().items():
            if rank == 1 and len(times) > step:
                return process, times[0]
        time.sleep(0.1)
    raise RuntimeError(f"the training ended before step {step}:\n{started.output()}")


def _take_training(engine: Engine) -> float:
    """Delete the training, so that the next one begins anew; returns its loss at the end."""
    (path,) = engine.storage.glob("*/train-*")
    training = Training.load(Folder(str(path)))
    assert training is not None
    shutil.rmtree(path)
    print(f"ours: {' '.join(training.notices)}", file=sys.stderr)
    losses = [point["loss"] for point in training.history if "loss" in point]
    return statistics.fmean(losses[-5:])


def speed(steps: Steps) -> float:
    """Tokens a second in the steady state, by the median step."""
    return BATCH * LENGTH / statistics.median(steps.seconds(SKIPPED))


def mean_speed(steps: Steps) -> float:
    """The same over all steps, so that pauses between them count."""
    return BATCH * LENGTH / statistics.fmean(steps.seconds(SKIPPED))


def report(results: Results, recoveries: list[dict[str, float]], machine: Machine) -> None:
    print(
        f"{'':24}{'tokens/s, median step':>28}{'all steps':>12}{'first step after':>24}{'loss':>8}"
    )
    for name, rounds in results.items():
        all_steps = statistics.median(map(mean_speed, rounds))
        print(
            f"{name:24}{spread([speed(steps) for steps in rounds], 0):>28}{all_steps:>12,.0f}"
            f"{spread([steps.start for steps in rounds], 1) + ' s':>24}{rounds[-1].loss:>8.3f}"
        )
    found = ratios(results)
    if recoveries:
        found["kill to next step, s"] = [each["next_step_after"] for each in recoveries]
    print()
    for name, values in found.items():
        print(f"{name:52}{spread(values)}")
    print_json(
        {
            "benchmark": "train",
            "sides": {
                name: [
                    {
                        "tokens_per_second": round(speed(steps)),
                        "tokens_per_second_all_steps": round(mean_speed(steps)),
                        "ready_after": round(steps.ready - steps.command, 2),
                        "first_step_after": round(steps.start, 2),
                        "loss": round(steps.loss, 4),
                    }
                    for steps in rounds
                ]
                for name, rounds in results.items()
            },
            "ratios": {name: [round(v, 3) for v in values] for name, values in found.items()},
            "recoveries": recoveries,
            **machine.summary(),
        }
    )


def ratios(results: Results) -> dict[str, list[float]]:
    """What was compared, round by round, as far as the sides that it needs were run."""
    speeds = {name: np.array([speed(steps) for steps in each]) for name, each in results.items()}
    starts = {name: np.array([steps.start for steps in each]) for name, each in results.items()}
    pace = {name: np.array([mean_speed(steps) for steps in each]) for name, each in results.items()}
    compared = {
        "ours / torchrun, 1 worker": lambda: speeds["ours 1"] / speeds["torchrun 1"],
        "ours / torchrun, 2 workers": lambda: speeds["ours 2"] / speeds["torchrun 2"],
        "of which kept memory: torchrun with it / without": lambda: (
            speeds["torchrun 2, memory kept"] / speeds["torchrun 2"]
        ),
        "ours / the best trainer, 2 cores": lambda: (
            speeds["ours 2"] / np.max([speeds[name] for name in TRAINERS], axis=0)
        ),
        "of which bf16: transformers bf16 / fp32": lambda: (
            speeds["transformers 1x2 bf16"] / speeds["transformers 1x2"]
        ),
        "start to first step, ours / torchrun, 2 workers": lambda: (
            starts["ours 2"] / starts["torchrun 2"]
        ),
        "cost of train.deterministic, 2 workers, %": lambda: (
            100 * (speeds["ours 2"] / speeds["ours 2, deterministic"] - 1)
        ),
        f"cost of a checkpoint every {SAVED_EVERY} steps, %": lambda: (
            100 * (pace["ours 2"] / pace["ours 2, saving"] - 1)
        ),
    }
    found = {}
    for name, compare in compared.items():
        with contextlib.suppress(KeyError):  # of a side that was left out
            found[name] = compare().tolist()
    return found


if __name__ == "__main__":
    main()
