"""Static batching with this engine's model and matrix products: a batch of what waits, padded on
the left, runs until its longest text has ended, and is answered then.

    python -m benchmarks.peers.serve_static FOLDER
"""

import torch
from torch import Tensor, nn

from benchmarks.peers.serving import Batching, Reply, Waiting, folder_argument, listen, peer_app
from benchmarks.served_model import SLOTS, load
from orchestrator.infer.row_linear import convert_to_rows
from orchestrator.model.generate import GREEDY, generate_batch
from orchestrator.model.transformer import Transformer


class LastOnly(nn.Module):
    """A head that computes the logits of the last token alone, (B, 1, V): no other is read."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x_BTD: Tensor, embedding_VD: Tensor) -> Tensor:
        logits_BTV: Tensor = self.head(x_BTD[:, -1:], embedding_VD)
        return logits_BTV


def compute(model: Transformer, end_token: int, batch: list[Waiting], reply: Reply) -> None:
    length = max(len(each.prompt) for each in batch)
    prompts_BT = torch.zeros(len(batch), length, dtype=torch.long)
    real_BT = torch.zeros(len(batch), length, dtype=torch.bool)
    for i, each in enumerate(batch):
        prompts_BT[i, length - len(each.prompt) :] = torch.tensor(each.prompt)
        real_BT[i, length - len(each.prompt) :] = True
    most = max(each.max_tokens for each in batch)
    cache = model.new_cache(len(batch), length + most, real_BT=real_BT)
    steps = list(generate_batch(model, cache, prompts_BT, most, GREEDY, end_token))
    for i, each in enumerate(batch):
        reply(each, [tokens[i] for tokens in steps[: each.max_tokens]])


def main() -> None:
    folder = folder_argument()
    processor, model = load(folder)
    convert_to_rows(model)
    model.head = LastOnly(model.head)
    generator = Batching(SLOTS, lambda *args: compute(model, processor.end_token, *args))
    listen(peer_app(folder, generator))


if __name__ == "__main__":
    main()
