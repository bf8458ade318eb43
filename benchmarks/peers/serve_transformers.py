"""`transformers` behind FastAPI as it is usually written: `generate`, one request at a time.

python -m benchmarks.peers.serve_transformers FOLDER
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.serving import Generator, folder_argument, listen, peer_app
from benchmarks.served_model import EXPORT


class OneByOne(Generator):
    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder / EXPORT).eval()
        self._thread = ThreadPoolExecutor(1)

    async def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._generate, prompt, max_tokens)

    @torch.inference_mode()
    def _generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        prompt_BT = torch.tensor([prompt])
        tokens_BT = self._model.generate(
            prompt_BT,
            attention_mask=torch.ones_like(prompt_BT),
            max_length=None,
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        tokens: list[int] = tokens_BT[0, len(prompt) :].tolist()
        return tokens


def main() -> None:
    folder = folder_argument()
    listen(peer_app(folder, OneByOne(folder)))


if __name__ == "__main__":
    main()
