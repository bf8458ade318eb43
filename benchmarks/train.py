"""Training speed, compared with a plain torchrun script, Hugging Face's Trainer and Lightning.

    python -m benchmarks.train

All sides train the same model on the same rows with fused AdamW, one batch size and the same cores.
Each side starts anew in every round, and the order of the sides rotates. The command prints a
table, ratios, and at the end one line of JSON.
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
    Command,
    Engine,
    Machine,
    StepTimes,
    check_niceness,
    option_parser,
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
    "min_lr_ratio": 1.0,  # a constant rate, which every side supports
    "eval_rows": BATCH,
}
SKIPPED = 10  # steps before the steady state
SAVED_EVERY = 10  # steps between checkpoints, for the side that saves them

TORCHRUN = ["torch.distributed.run", "--standalone"]
PLAIN = "benchmarks.peers.torchrun_script"
TRANSFORMERS = "benchmarks.peers.transformers_trainer"
LIGHTNING = "benchmarks.peers.lightning_trainer"


@dataclass(frozen=True)
class Side:
    """The command of a side: this engine with overrides of its job, or a peer's module."""

    threads: int  # of each process
    module: Sequence[str] = ()  # empty: this engine
    options: Sequence[str] = ()  # overrides of the job, or the peer's arguments after its folder
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the benchmark's own


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

Results = dict[str, list[StepTimes]]  # by side, one for each round


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
    parser = option_parser(__doc__)
    parser.add_argument("--steps", type=int, default=100, help=f"the first {SKIPPED} do not count")
    names = [*SIDES, KILLED]
    parser.add_argument("--sides", nargs="+", choices=names, default=names, metavar="SIDE")
    options = parser.parse_args()
    if options.steps < SKIPPED + 5:
        parser.error(f"--steps = {options.steps}: must be {SKIPPED + 5} or more")
    return options


def prepare(engine: Engine, machine: Machine, folder: Path) -> None:
    """Prepare the job's data, and write the peers' workload: the settings, and each step's rows."""
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
    workload = {
        "model": job.model.model_dump(),
        "vocab_size": processor.vocab_size,
        "batch": BATCH,
        "bf16": choice.precision == "bf16",
        **{key: getattr(job.train, key) for key in keys},
    }
    (folder / "workload.json").write_text(json.dumps(workload))


def run(side: Side, engine: Engine, machine: Machine, folder: Path) -> StepTimes:
    os.environ["OMP_NUM_THREADS"] = str(side.threads)
    if not side.module:
        return run_ours(side, engine, machine)
    machine.wait_until_quiet()
    arguments = [sys.executable, "-m", *side.module, str(folder), *side.options]
    with Command(arguments, {**os.environ, **side.environment}, folder / "peer.log") as command:
        lines = [line for line in command.output().splitlines() if line.startswith('{"ready"')]
    result = json.loads(lines[-1])
    check_niceness({result["niceness"]})
    return StepTimes(command.started, result["ready"], result["ends"], result["loss"])


def run_ours(side: Side, engine: Engine, machine: Machine) -> StepTimes:
    with (
        running_ray(machine) as environment,
        engine.start("train", side.options, environment) as command,
    ):
        command.output()
    ((ready, *begins),) = [times for (rank, _), times in engine.workers().items() if rank == 0]
    # A step ends when the next one begins. The end of the last step is unknown.
    return StepTimes(command.started, ready, begins[1:], _take_training(engine))


def recover(engine: Engine, machine: Machine, steps: int) -> dict[str, float]:
    """Train for 2 * `steps`, and kill the second worker halfway; returns the seconds until its
    replacement has finished a step, and those that it had trained before."""
    os.environ["OMP_NUM_THREADS"] = "1"
    overrides = [*SAVING, f"train.steps={2 * steps}"]
    with (
        running_ray(machine) as environment,
        engine.start("train", overrides, environment) as command,
    ):
        process, ready = _second_worker_at(steps, engine, command)
        os.kill(process, signal.SIGKILL)
        killed = time.time()
        command.output()
    _take_training(engine)
    workers = engine.workers()
    (restarted,) = [times for (rank, p), times in workers.items() if rank == 1 and p != process]
    return {
        "next_step_after": restarted[2] - killed,  # its second step begins
        "trained_before": killed - ready,
    }


def _second_worker_at(step: int, engine: Engine, command: Command) -> tuple[int, float]:
    """Wait until the second worker has reached a step; returns its process and when it was
    ready."""
    while command.process.poll() is None:
        for (rank, process), times in engine.workers().items():
            if rank == 1 and len(times) > step:
                return process, times[0]
        time.sleep(0.1)
    raise RuntimeError(f"the training ended before step {step}:\n{command.output()}")


def _take_training(engine: Engine) -> float:
    """Delete the training, so that the next one starts anew; returns its last losses' mean."""
    (path,) = engine.storage.glob("*/train-*")
    training = Training.load(Folder(str(path)))
    assert training is not None
    shutil.rmtree(path)
    print(f"ours: {' '.join(training.notices)}", file=sys.stderr)
    losses = [point["loss"] for point in training.history if "loss" in point]
    return statistics.fmean(losses[-5:])


def speed(times: StepTimes) -> float:
    """Tokens per second in the steady state, by the median step."""
    return BATCH * LENGTH / statistics.median(times.seconds(SKIPPED))


def mean_speed(times: StepTimes) -> float:
    """Tokens per second in the steady state, by the mean step: pauses between steps count."""
    return BATCH * LENGTH / statistics.fmean(times.seconds(SKIPPED))


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
    comparisons = ratios(results)
    if recoveries:
        comparisons["kill to next step, s"] = [each["next_step_after"] for each in recoveries]
    print()
    for name, values in comparisons.items():
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
            "ratios": {name: [round(v, 3) for v in values] for name, values in comparisons.items()},
            "recoveries": recoveries,
            **machine.summary(),
        }
    )


def ratios(results: Results) -> dict[str, list[float]]:
    """The comparisons whose sides were run, by name: one value for each round."""
    speeds = {name: np.array([speed(steps) for steps in each]) for name, each in results.items()}
    starts = {name: np.array([steps.start for steps in each]) for name, each in results.items()}
    pace = {name: np.array([mean_speed(steps) for steps in each]) for name, each in results.items()}
    comparisons = {
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
    values = {}
    for name, compare in comparisons.items():
        with contextlib.suppress(KeyError):  # a side of this comparison was not run
            values[name] = compare().tolist()
    return values


if __name__ == "__main__":
    main()
