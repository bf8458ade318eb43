"""The continuous batching of `transformers` behind FastAPI, with the settings that fit a CPU.

    python -m benchmarks.peers.serve_transformers_continuous FOLDER

It is made for GPUs. On a CPU its cache needs an explicit size, or it takes 60 % of the memory.
"""

import asyncio
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.peers.serving import Generator, folder_argument, listen, peer_app
from benchmarks.served_model import CONTEXT, EXPORT, SLOTS

PAGE = 32  # tokens of a block of the cache


class Continuous(Generator):
    def __init__(self, folder: Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(folder / EXPORT).eval()
        settings = GenerationConfig(do_sample=False, eos_token_id=model.config.eos_token_id)
        batching = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=SLOTS * CONTEXT // PAGE,
            max_batch_tokens=256,
            max_requests_per_batch=SLOTS,
            allow_block_sharing=False,  # no two prompts begin alike
        )
        self._manager = model.init_continuous_batching(settings, batching)
        self._manager.start()
        self._count = 0

    async def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._count += 1
        name = str(self._count)
        self._manager.register_result_handler(name, answer.set_result)
        self._manager.add_request(prompt, name, max_new_tokens=max_tokens)
        result = await answer
        if result.error is not None:
            raise RuntimeError(result.error)
        return list(result.generated_tokens)


def main() -> None:
    folder = folder_argument()
    listen(peer_app(folder, Continuous(folder)))


if __name__ == "__main__":
    main()
