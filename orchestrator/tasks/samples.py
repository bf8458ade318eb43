"""Sample lines: what a model makes of one validation row, for a person who watches the training."""

import time
from collections.abc import Iterator

import torch

from orchestrator.model.generate import GREEDY, generate, generate_batch
from orchestrator.model.transformer import Transformer
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks.objectives import trimmed
from orchestrator.tasks.task import Batch

PROMPT_TOKENS = 16
NEW_TOKENS = 24
SECONDS = 1.0  # a slow model generates fewer tokens
LONGEST = 100  # characters of each side of the arrow


def line(given: str, answer: str) -> str:
    """A sample line, such as `the cat sat → on the mat`."""
    return f"{_on_one_line(given)} → {_on_one_line(answer)}"


def continuation(model: Transformer, tokens: list[int], processor: TextProcessor) -> str | None:
    """A text's first tokens, and how the model continues them; None for too short a context."""
    prompt = tokens[: min(PROMPT_TOKENS, model.config.max_seq_len // 2)]
    room = min(NEW_TOKENS, model.config.max_seq_len - len(prompt))
    if not prompt:
        return None
    new = _in_time(generate(model, prompt, room, GREEDY, processor.end_token))
    return line(processor.decode(prompt), processor.decode(new))


def generated_target(model: Transformer, batch: Batch, processor: TextProcessor) -> str:
    """The beginning of the target that the model generates for a batch's first source."""
    first = {name: batch[name][:1] for name in ("source", "source_length")}
    source_BS, real_BS = trimmed(first, "source")
    end, room = processor.end_token, min(NEW_TOKENS, model.config.max_seq_len - 1)
    cache = model.new_cache(1, room + 1, source_BS=source_BS, source_real_BS=real_BS)
    start_BT = torch.full((1, 1), end, device=source_BS.device)
    new = _in_time(row[0] for row in generate_batch(model, cache, start_BT, room, GREEDY, end))
    return processor.decode(new[: new.index(end)] if end in new else new)


def _in_time(tokens: Iterator[int]) -> list[int]:
    """As many tokens as come within SECONDS, at least one."""
    deadline, taken = time.monotonic() + SECONDS, []
    for token in tokens:
        taken.append(token)
        if time.monotonic() > deadline:
            break
    return taken


def _on_one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
