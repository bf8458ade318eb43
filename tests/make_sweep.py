"""Sweeps as a real one writes them, without any training: to test the dashboard, and to look at it.

python -m tests.make_sweep runs --trials 30          # a finished one
python -m tests.make_sweep runs --trials 30 --live   # one that runs until Ctrl-C
python -m tests.make_sweep runs --exploits           # of population based training
"""

import argparse
import math
import random
import socket
import time
from pathlib import Path
from typing import Any

from orchestrator.storage import lease
from orchestrator.storage.artifact import Sweep
from orchestrator.storage.events import EventLog
from orchestrator.storage.folder import Folder
from orchestrator.tune.records import REQUESTS, Exploit, Point, SweepRecord, Trial

SPACE: dict[str, dict[str, Any]] = {
    "train.lr": {"loguniform": [1e-4, 1e-1]},
    "train.optimizer": {"choice": ["adamw", "muon"]},
    "train.weight_decay": {"uniform": [0.0, 0.3]},
    "model.num_layers": {"randint": [1, 7]},
    "model.dropout": {"uniform": [0.0, 0.4]},
    "model.activation": {"choice": ["gelu", "swiglu", "relu"]},
}
STEP_SECONDS = 0.25
FINGERPRINT = "tune-4f2a91c07be3"
TRACEBACK = """\
Traceback (most recent call last):
  File "orchestrator/fit.py", line 112, in fit
    guard.check(step, loss)
  File "orchestrator/guard.py", line 41, in check
    raise DivergedError(f"diverged at step {step}: the loss is {loss}")
orchestrator.errors.DivergedError: diverged at step 24: the loss is nan
"""


def plan(
    trials: int = 30, points: int = 20, steps: int = 200, concurrent: int = 4, stops: bool = True
) -> tuple[SweepRecord, list[Trial]]:
    """A sweep with its trials as they end, begun at time 0."""
    chance = random.Random(0)
    record = SweepRecord(
        name="reviews", task="text_classification", metric="loss", mode="min", space=SPACE,
        search="random", scheduler="asha", trials=trials, steps=steps, concurrent=concurrent,
        cpus=2.0,
    )  # fmt: skip
    free = [0.0] * concurrent
    planned: list[Trial] = []
    rungs: dict[int, list[float]] = {points // 4: [], points // 2: []} if stops else {}
    for number in range(trials):
        lane = free.index(min(free))
        trial = _trial(number, points, steps, chance)
        _stop(trial, rungs)
        trial.started = free[lane] + 0.3
        trial.ended = trial.started + trial.seconds
        free[lane] = trial.ended
        planned.append(trial)
    record.seconds = max(free)
    return record, planned


def _draw(chance: random.Random) -> dict[str, Any]:
    return {
        "train.lr": 10 ** chance.uniform(-4, -1),
        "train.optimizer": chance.choice(["adamw", "muon"]),
        "train.weight_decay": round(chance.uniform(0, 0.3), 4),
        "model.num_layers": chance.randrange(1, 7),
        "model.dropout": round(chance.uniform(0, 0.4), 3),
        "model.activation": chance.choice(["gelu", "swiglu", "relu"]),
    }


def _trial(number: int, points: int, steps: int, chance: random.Random) -> Trial:
    """A trial that is not stopped. Its loss depends on the learning rate most, then on depth."""
    values = _draw(chance)
    best_lr = -2.0 if values["train.optimizer"] == "muon" else -2.6
    off = abs(math.log10(values["train.lr"]) - best_lr)
    end = 0.32 + 0.16 * off**1.6 + 0.05 * abs(values["model.num_layers"] - 4)
    end += 0.25 * (values["model.dropout"] - 0.12) ** 2 + chance.gauss(0, 0.012)
    speed = 2.0 + 3.5 / (1 + off)
    seconds = STEP_SECONDS * (0.6 + 0.15 * values["model.num_layers"])
    curve: list[Point] = []
    for point in range(1, points + 1):
        share = point / points
        loss = end + (2.1 - end) * math.exp(-speed * share) + chance.gauss(0, 0.012)
        step = round(steps * share)
        curve.append(
            {
                "step": step,
                "seconds": round(step * seconds, 2),
                "loss": loss,
                "accuracy": max(0.2, 1.02 - 0.38 * loss + chance.gauss(0, 0.004)),
            }
        )
    trial = Trial(number=number, configuration=number, overrides=values, host="node-1")
    trial.curve = curve
    if values["train.lr"] > 0.07 or number % 13 == 5:  # of the first dozen one, in any case
        _fail(trial)
    else:
        _end(trial, "finished")
    return trial


def _end(trial: Trial, state: Any) -> None:
    last = trial.curve[-1]
    trial.state, trial.step, trial.seconds = state, int(last["step"]), last["seconds"]
    trial.metrics = {k: v for k, v in last.items() if k not in ("step", "seconds")}


def _fail(trial: Trial) -> None:
    trial.curve = trial.curve[: max(2, len(trial.curve) // 8)]
    trial.curve[-1]["loss"] = math.nan
    _end(trial, "failed")
    trial.reason = f"diverged at step {trial.step}: the loss is nan"
    trial.traceback = TRACEBACK


def _stop(trial: Trial, rungs: dict[int, list[float]]) -> None:
    """As ASHA does: at each rung the worse half of all that came so far ends."""
    for rung, seen in rungs.items():
        if trial.state == "failed" or rung < 1 or len(trial.curve) < rung:
            return
        loss = trial.curve[rung - 1]["loss"]
        seen.append(loss)
        if loss > sorted(seen)[(len(seen) - 1) // 2]:
            trial.curve = trial.curve[:rung]
            _end(trial, "stopped early")
            trial.reason = f"asha: at step {trial.step} not among the best half of {len(seen)}"
            return


def exploit(trials: list[Trial]) -> None:
    """Make of a planned sweep one of population based training: bad trials go on from good ones."""
    chance = random.Random(0)
    for trial in trials:
        trial.started, trial.ended = 0.3, None
        if trial.state == "failed":
            trial.ended = trial.started + trial.seconds
            continue
        _end(trial, "finished")
        trial.reason, trial.ended = "", trial.started + trial.seconds
        if trial.number % 3 == 1 and len(trial.curve) > 4:
            at = len(trial.curve) // 2
            values = {"train.lr": trial.overrides["train.lr"] * chance.choice([0.8, 1.25])}
            values = {**trial.overrides, **values}
            trial.overrides = values
            donor = trial.number - 1
            step = int(trial.curve[at]["step"])
            trial.exploits = [Exploit(step=step, donor=donor, overrides=values)]


def moved(record: SweepRecord, trials: list[Trial], began: float) -> None:
    """Let the sweep begin at a Unix time."""
    record.started = began
    for trial in trials:
        trial.started += began
        trial.ended = None if trial.ended is None else trial.ended + began


def as_of(trial: Trial, now: float) -> Trial | None:
    """A planned trial as it stands at a time; None before it begins."""
    if trial.started > now:
        return None
    if trial.ended is not None and trial.ended <= now:
        return trial
    curve = [point for point in trial.curve if trial.started + point["seconds"] <= now]
    begun = trial.model_copy(
        update={"curve": curve, "state": "running", "ended": None, "reason": "", "traceback": ""}
    )
    last = curve[-1] if curve else {}
    begun.step, begun.seconds = int(last.get("step", 0)), last.get("seconds", 0.0)
    begun.metrics = {k: v for k, v in last.items() if k not in ("step", "seconds")}
    begun.exploits = [e for e in trial.exploits if e.step <= begun.step]
    return begun


def write_trial(folder: Folder, trial: Trial) -> None:
    """As fast as tests need it: whole, but not waiting for the disk."""
    assert folder.local_path is not None
    path = folder.local_path / trial.file
    temporary = path.with_suffix(".tmp")
    temporary.write_text(trial.model_dump_json())
    temporary.replace(path)


def write_log(folder: Folder, trial: Trial) -> None:
    lines = [f"step {p['step']:>6g}  loss {p['loss']:.4f}" for p in trial.curve]
    text = "\n".join([f"trial {trial.number}: {trial.overrides}", *lines, trial.traceback])
    (folder / trial.file.removesuffix(".json")).write("log.txt", text.encode())


def write_start(run: Folder, command: str) -> None:
    """The event of the start, as a run writes it."""
    EventLog(run).write(
        "run", "started", command=command, process=1, host=socket.gethostname(),
        directory=str(Path.cwd()),
    )  # fmt: skip


def write_finished(run: Folder, record: SweepRecord, trials: list[Trial]) -> Folder:
    """A whole sweep in a run's folder."""
    folder = run / FINGERPRINT
    record.state = "finished"
    record.save(folder)
    for trial in trials:
        write_trial(folder, trial)
    for trial in trials[:50]:
        write_log(folder, trial)
    sound = [t for t in trials if t.state != "failed"]
    best = min(sound, key=lambda t: (t.state != "finished", t.metrics["loss"]))
    Sweep(
        folder=folder,
        seconds=record.seconds,
        summary="",
        best=best.overrides,
        best_trial=best.number,
        trials=[],
    ).commit()
    return folder


def play(run: Folder, record: SweepRecord, trials: list[Trial], speed: float) -> None:
    """Write the sweep as it goes, until it or somebody's patience ends."""
    began = time.time()
    moved(record, trials, began)
    folder = run / FINGERPRINT
    record.seconds = 0.0
    with lease.hold(run, record.name):
        record.save(folder)
        written: dict[int, str] = {}
        while not (folder / REQUESTS).exists("stop"):
            now = began + (time.time() - began) * speed
            shown = [at for trial in trials if (at := as_of(trial, now)) is not None]
            for trial in shown:
                content = trial.model_dump_json()
                if written.get(trial.number) != content:
                    written[trial.number] = content
                    write_trial(folder, trial)
                    write_log(folder, trial)
            if len(shown) == len(trials) and all(t.state != "running" for t in shown):
                break
            time.sleep(0.5)
        record.seconds = time.time() - began
        record.state = "stopped" if (folder / REQUESTS).exists("stop") else "finished"
        record.save(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("storage")
    parser.add_argument("--name", default="reviews")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--exploits", action="store_true")
    options = parser.parse_args()
    record, trials = plan(options.trials, options.points, stops=not options.exploits)
    record.name = options.name
    if options.exploits:
        record.scheduler = "pbt"
        exploit(trials)
    run = Folder(options.storage) / options.name
    write_start(run, "orchestrator run job.yaml train.minutes=20")
    if options.live:
        play(run, record, trials, options.speed)
        return
    moved(record, trials, time.time() - record.seconds)
    write_finished(run, record, trials)


if __name__ == "__main__":
    main()
