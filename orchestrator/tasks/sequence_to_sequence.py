"""What sequence-to-sequence tasks share: encoding, losses and generation (Sutskever et al. 2014).

A target begins after an end token and closes with one. Sources and targets are cut to max_seq_len.
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


def encode_sequences(
    sources: list[list[int]], targets: list[str], processor: TextProcessor, length: int
) -> Arrays:
    """Padded `source` (rows, length) and `target` (rows, length + 1), the number of real tokens of
    each row, and `target_bytes`, the bytes of text that the target's tokens stand for."""
    begin, end = [processor.end_token, *processor.opening], processor.end_token
    room = max(length - len(begin), 0)
    rows = processor.encode_with_bytes(targets)
    tokens = np.zeros((len(rows), length + 1), dtype=processor.dtype)
    lengths, sizes = (np.zeros(len(rows), dtype=np.int32) for _ in range(2))
    for i, (target, token_bytes) in enumerate(rows):
        row = [*begin, *target[:room], end]
        tokens[i, : len(row)], lengths[i], sizes[i] = row, len(row), sum(token_bytes[:room])
    return {
        **processor.padded("source", sources, length),
        "target": tokens,
        "target_length": lengths,
        "target_bytes": sizes,
    }


def target_logits(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of each target token (B, T, V), the targets (B, T), and which of them are real."""
    source_BS, source_real_BS = trimmed(batch, "source")
    target_BT, real_BT = trimmed(batch, "target")
    logits_BTV = model(target_BT[:, :-1], source_BS=source_BS, source_real_BS=source_real_BS)
    return logits_BTV, target_BT[:, 1:], real_BT[:, 1:]


def target_losses(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of each target token (B, T), 0 for padding, and which are real."""
    logits_BTV, targets_BT, real_BT = target_logits(model, batch)
    return token_loss(logits_BTV, targets_BT) * real_BT, real_BT


def loss_totals(model: torch.nn.Module, batch: Batch) -> Arrays:
    """The nats, tokens and bytes of each target, (B,), for `language_metrics`."""
    losses_BT, real_BT = target_losses(model, batch)
    return {
        "nats": losses_BT.double().sum(1).cpu().numpy(),
        "tokens": real_BT.sum(1).cpu().numpy(),
        "bytes": batch["target_bytes"].cpu().numpy(),
    }


def generate_targets(
    model: Transformer, batch: Batch, processor: TextProcessor, num_beams: int
) -> Arrays:
    """`predictions`: the text generated for each source, greedily or by beam search."""
    source_BS, real_BS = trimmed(batch, "source")
    count, end, length = len(source_BS), processor.end_token, model.config.max_seq_len
    cache = model.new_cache(count, length, source_BS=source_BS, source_real_BS=real_BS)
    start_BT = torch.full((count, 1), end, device=source_BS.device)
    if num_beams > 1:
        rows = beam_search(model, cache, start_BT, length - 1, num_beams, end)
    else:
        columns = list(generate_batch(model, cache, start_BT, length - 1, GREEDY, end))
        rows = [list(row) for row in zip(*columns, strict=True)]
    cut = [row[: row.index(end)] if end in row else row for row in rows]
    return {"predictions": np.array([processor.decode(row) for row in cut], dtype=object)}


def decode_column(arrays: Arrays, name: str, processor: TextProcessor) -> list[str]:
    """The texts of the padded tokens `name`, one for each row."""
    lengths = arrays[f"{name}_length"].tolist()
    rows = zip(arrays[name].tolist(), lengths, strict=True)
    return [processor.decode(row[:length]) for row, length in rows]
