"""Sources and targets: what sequence-to-sequence tasks share. Any text into any other.

A target begins after an end token and closes with one. Both are cut to max_seq_len.
"""

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.model.generate import GREEDY, beam_search, generate_batch
from orchestrator.model.transformer import Transformer
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks.objectives import token_loss, trimmed

Batch = dict[str, Tensor]


def encode_pairs(
    sources: list[list[int]], targets: list[str], processor: TextProcessor, length: int
) -> Arrays:
    """`source`, `target`, how many of their tokens are real, and the bytes of text of the target's
    tokens, as far as these fit."""
    begin, end = [processor.end_token, *processor.opening], processor.end_token
    room = max(length - len(begin), 0)
    rows = processor.encode_with_bytes(targets)
    tokens = np.zeros((len(rows), length + 1), dtype=processor.dtype)
    lengths, sizes = (np.zeros(len(rows), dtype=np.int32) for _ in range(2))
    for i, (target, bytes_of) in enumerate(rows):
        row = [*begin, *target[:room], end]
        tokens[i, : len(row)], lengths[i], sizes[i] = row, len(row), sum(bytes_of[:room])
    return {
        **processor.padded("source", sources, length),
        "target": tokens,
        "target_length": lengths,
        "target_bytes": sizes,
    }


def pair_logits(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The logits (B, T, V) of each target token, that token, and whether it is real."""
    source_BS, source_real_BS = trimmed(batch, "source")
    target_BT, real_BT = trimmed(batch, "target")
    logits_BTV = model(target_BT[:, :-1], source_BS=source_BS, source_real_BS=source_real_BS)
    return logits_BTV, target_BT[:, 1:], real_BT[:, 1:]


def pair_losses(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The nats of each target token (B, T), 0 where it is padding, and which are real."""
    logits_BTV, targets_BT, real_BT = pair_logits(model, batch)
    return token_loss(logits_BTV, targets_BT) * real_BT, real_BT


def predict_pairs(model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
    """What `language_metrics` needs of each row."""
    losses_BT, real_BT = pair_losses(model, batch)
    return {
        "nats": losses_BT.double().sum(1).cpu().numpy(),
        "tokens": real_BT.sum(1).cpu().numpy(),
        "bytes": batch["target_bytes"].cpu().numpy(),
    }


def answer_pairs(
    model: Transformer, batch: Batch, processor: TextProcessor, num_beams: int
) -> Arrays:
    """The generated texts."""
    source_BS, real_BS = trimmed(batch, "source")
    count, end, length = len(source_BS), processor.end_token, model.config.max_seq_len
    cache = model.new_cache(count, length, source_BS=source_BS, source_real_BS=real_BS)
    start_BT = torch.full((count, 1), end, device=source_BS.device)
    if num_beams > 1:
        found = beam_search(model, cache, start_BT, length - 1, num_beams, end)
    else:
        columns = list(generate_batch(model, cache, start_BT, length - 1, GREEDY, end))
        found = [list(row) for row in zip(*columns, strict=True)]
    cut = [row[: row.index(end)] if end in row else row for row in found]
    return {"predictions": np.array([processor.decode(row) for row in cut], dtype=object)}


def texts_of(arrays: Arrays, name: str, processor: TextProcessor) -> list[str]:
    """The texts of encoded rows."""
    lengths = arrays[f"{name}_length"].tolist()
    rows = zip(arrays[name].tolist(), lengths, strict=True)
    return [processor.decode(row[:length]) for row, length in rows]
