"""Predictions in shared batches against one by one: `make bench-predictions`.

Clients in a closed loop ask a small text classification model; each has one request at a time. The
two ways take turns within the run, so that whatever else the machine does meets both. The rate is
also given for a second of this process's CPU time, which a busy machine changes less.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import torch

from orchestrator.infer.batcher import BatchLimits
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.job.job import Job
from orchestrator.serve.metrics import UNOBSERVED
from orchestrator.serve.predictor import Predictor

TEXT = "the dog sleeps under an old tree while a cat watches it from the wall and it rains"
WORDS = TEXT.split()
ROUNDS = 3
WAYS = {
    "one by one": BatchLimits(rows=1, window=0.0, waiting=1000),
    "in batches": BatchLimits(waiting=1000),
}


@dataclass(frozen=True)
class Result:
    """A closed loop's requests a second, in seconds of the clock and of the CPU."""

    rate: float
    cpu_rate: float
    p50: float  # milliseconds
    p99: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    job, trained = make_model(options.layers, options.d_model)
    results: defaultdict[tuple[int, str], list[Result]] = defaultdict(list)
    for _ in range(ROUNDS):
        for clients in (1, 8, 32):
            for way, limits in WAYS.items():
                predictor = Predictor(job, trained, UNOBSERVED, limits)
                asyncio.run(closed_loop(predictor, clients, options.seconds / 4))
                measured = asyncio.run(closed_loop(predictor, clients, options.seconds))
                results[clients, way].append(measured)
                predictor.close()
    print("clients  way          a second   a CPU second   p50 ms   p99 ms")
    for (clients, way), measured in results.items():
        middle = [
            statistics.median(getattr(result, name) for result in measured)
            for name in ("rate", "cpu_rate", "p50", "p99")
        ]
        print(f"{clients:7}  {way}  {middle[0]:10.0f} {middle[1]:14.0f} ", end="")
        print(f"{middle[2]:8.1f} {middle[3]:8.1f}")


def make_model(layers: int, d_model: int) -> tuple[Job, TrainedModel]:
    """A classification model with random weights: speed does not depend on them."""
    sizes = {"num_layers": layers, "d_model": d_model, "num_heads": max(d_model // 64, 1)}
    job = Job.model_validate(
        {
            "name": "predictions",
            "task": "text_classification",
            "data": {"source": "python-stdlib"},
            "model": {**sizes, "max_seq_len": 128},
            "serve": {"max_queued_requests": 1000},
        }
    )
    task = job.build_task()
    rows = [{"text": TEXT, "label": label} for label in ("yes", "no")]
    processor = task.fit_processor(rows * 50)
    model = task.build_model(processor.vocab_size, processor.num_outputs)
    return job, TrainedModel(task, processor, model.eval())


async def closed_loop(predictor: Predictor, clients: int, seconds: float) -> Result:
    times: list[float] = []
    begin, cpu = time.monotonic(), time.process_time()

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < begin + seconds:
            text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, 40)))
            sent = time.monotonic()
            await predictor.predict([{"text": text}])
            times.append(1000 * (time.monotonic() - sent))

    await asyncio.gather(*(client(number) for number in range(clients)))
    cuts = statistics.quantiles(times, n=100)
    return Result(
        len(times) / (time.monotonic() - begin),
        len(times) / (time.process_time() - cpu),
        cuts[49],
        cuts[98],
    )


if __name__ == "__main__":
    main()
