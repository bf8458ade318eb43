"""CTranslate2 behind FastAPI: what waits is one batch, up to 32 requests.

    python -m benchmarks.peers.serve_ctranslate2 FOLDER float32|int8

It reads at once only as many tokens of each prompt as the shortest one has, and the others one by
one. So a batch is sorted by length, and computed in parts of PART. A request whose text has ended
is answered at once and leaves its part.
"""

import os
import sys
from pathlib import Path
from typing import Any

import ctranslate2
from tokenizers import Tokenizer

from benchmarks.peers.serving import Batching, Reply, Waiting, folder_argument, listen, peer_app
from benchmarks.served_model import CTRANSLATE2, EXPORT, SLOTS

PART = 8


class Parts:
    def __init__(self, folder: Path, precision: str, part: int = PART) -> None:
        self._generator = ctranslate2.Generator(
            str(folder / CTRANSLATE2),
            compute_type=precision,
            inter_threads=1,
            intra_threads=int(os.environ["OMP_NUM_THREADS"]),
        )
        tokenizer = Tokenizer.from_file(str(folder / EXPORT / "tokenizer.json"))
        self._names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        self._part = part

    def compute(self, batch: list[Waiting], reply: Reply) -> None:
        batch = sorted(batch, key=lambda each: len(each.prompt))
        for first in range(0, len(batch), self._part):
            self._compute_part(batch[first : first + self._part], reply)

    def _compute_part(self, part: list[Waiting], reply: Reply) -> None:
        tokens: list[list[int]] = [[] for _ in part]

        def add(step: Any) -> bool:
            own, each = tokens[step.batch_id], part[step.batch_id]
            own.append(step.token_id)
            if len(own) < each.max_tokens:
                return False
            if len(own) == each.max_tokens:
                reply(each, own)
            return True

        self._generator.generate_batch(
            [[self._names[token] for token in each.prompt] for each in part],
            max_length=max(each.max_tokens for each in part),
            include_prompt_in_result=False,
            callback=add,
        )


def main() -> None:
    folder = folder_argument()
    parts = Parts(folder, sys.argv[2])
    listen(peer_app(folder, Batching(SLOTS, parts.compute)))


if __name__ == "__main__":
    main()
