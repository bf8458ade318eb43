"""Masked language modelling: predict the hidden tokens of a text from both sides (Devlin et al.
2019, section 3.1).

It pretrains an encoder: another job continues from the result with `model.init_from`.
"""

import math
import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.text import MASK, TextProcessor
from orchestrator.tasks import samples
from orchestrator.tasks.metrics import language_metrics
from orchestrator.tasks.objectives import token_loss, trimmed
from orchestrator.tasks.task import Batch, Metric, Task

HIDDEN = 0.15  # share of the tokens that are predicted
MASKED, RANDOM = 0.8, 0.1  # shares of those that a mask or a random token replaces
SHOWN = 4  # hidden tokens of a sample line
PASSES = 7  # of a prediction, each hiding 1/7 of the tokens: about the share of training


class MaskedLanguageModelling(Task[TextProcessor]):
    """A document is cut into pieces of max_seq_len tokens; the last piece may be shorter. The
    special tokens that a tokenizer puts around a text surround each piece, and are never hidden."""

    metric = Metric("loss", "min")
    columns: ClassVar[dict[str, str]] = {"text": "text"}
    inputs = ("text",)
    pipeline = "fill-mask"
    counts = "tokens"
    fewest_rows = 16
    families = ("encoder",)
    lines = False

    def clean(self, row: Row) -> Row | None:
        text = unicodedata.normalize("NFC", row["text"])
        return {"text": text} if text.strip() else None

    def fit_processor(self, rows: Iterable[Row]) -> TextProcessor:
        texts = (row["text"] for row in rows)
        return fit_text(texts, self.tokenizer, self.model, special=(MASK,), prefix_space=True)

    def load_processor(self, content: bytes) -> TextProcessor:
        return TextProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: TextProcessor) -> Arrays:
        before, after = processor.prefix, processor.suffix
        room = max(self.model.max_seq_len - len(before) - len(after), 1)
        pieces: list[list[int]] = []
        sizes: list[int] = []  # bytes of text in each piece
        # An imported tokenizer may turn a text into no tokens: then the row has no piece.
        for tokens, token_bytes in processor.encode_with_bytes([row["text"] for row in rows]):
            for start in range(0, len(tokens), room):
                pieces.append([*before, *tokens[start : start + room], *after])
                sizes.append(sum(token_bytes[start : start + room]))
        constants = {"before": len(before), "after": len(after), "mask": processor.mask_token}
        return {
            **processor.padded("tokens", pieces, self.model.max_seq_len),
            "bytes": np.array(sizes, dtype=np.int32),
            **{name: np.full(len(pieces), n, dtype=np.int32) for name, n in constants.items()},
        }

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens_BT, real_BT = trimmed(batch, "tokens")
        chance_BT = torch.rand(tokens_BT.shape, device=tokens_BT.device)
        text_BT = text_mask(batch, real_BT)
        hidden_BT = (chance_BT < HIDDEN) & text_BT
        # A row in which no token was drawn hides its first one.
        first_BT = text_BT & (text_BT.cumsum(1) == 1)
        hidden_BT |= first_BT & ~hidden_BT.any(1, keepdim=True)
        mselected_BT = (chance_BT < HIDDEN * MASKED) & text_BT
        shown_BT = torch.where(mselected_BT, batch["mask"].long()[:, None], tokens_BT)
        random_BT = torch.randint_like(tokens_BT, model_vocabulary(model))
        is_random_BT = (chance_BT >= HIDDEN * MASKED) & (chance_BT < HIDDEN * (MASKED + RANDOM))
        shown_BT = torch.where(is_random_BT & text_BT, random_BT, shown_BT)
        losses_N = hidden_losses(model, shown_BT, real_BT, hidden_BT, tokens_BT)
        return losses_N.sum(), hidden_BT.sum().float()

    def predict(self, model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
        """The cross-entropy of every token in nats, summed over each row. Each pass hides every
        PASSES-th token."""
        tokens_BT, real_BT = trimmed(batch, "tokens")
        nats_B = torch.zeros(len(tokens_BT), dtype=torch.float64, device=tokens_BT.device)
        text_BT = text_mask(batch, real_BT)
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        for first in range(PASSES):
            hidden_BT = (positions_T % PASSES == first) & text_BT
            shown_BT = torch.where(hidden_BT, batch["mask"].long()[:, None], tokens_BT)
            losses_N = hidden_losses(model, shown_BT, real_BT, hidden_BT, tokens_BT)
            nats_B.index_add_(0, hidden_BT.nonzero()[:, 0], losses_N.double())
        return {
            "nats": nats_B.cpu().numpy(),
            "tokens": text_BT.sum(1).cpu().numpy(),
            "bytes": batch["bytes"].cpu().numpy(),
        }

    def fill(self, model: torch.nn.Module, batch: Batch) -> Arrays:
        """`masks`, (B,): how many mask tokens each row has; and `probabilities` (B, M, V) of the
        vocabulary at each of them, zero behind a row's last mask."""
        tokens_BT, real_BT = trimmed(batch, "tokens")
        masked_BT = (tokens_BT == batch["mask"].long()[:, None]) & real_BT
        counts_B = masked_BT.sum(1)
        logits_NV = model(tokens_BT, real_BT, selected_BT=masked_BT).float()
        rows_N = masked_BT.nonzero()[:, 0]
        numbers_N = (masked_BT.cumsum(1) - 1)[masked_BT]
        most = max(int(counts_B.max()), 1)
        filled_BMV = logits_NV.new_zeros(len(tokens_BT), most, logits_NV.shape[-1])
        filled_BMV[rows_N, numbers_N] = logits_NV.softmax(-1)
        return {"masks": counts_B.cpu().numpy(), "probabilities": filled_BMV.cpu().numpy()}

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        """Every PASSES-th token is hidden; behind the arrow are the model's guesses, each followed
        by the token in parentheses where it is another one."""
        first = {name: tensor[:1] for name, tensor in batch.items()}
        tokens_BT, real_BT = trimmed(first, "tokens")
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        hidden_BT = text_mask(first, real_BT) & (positions_T % PASSES == PASSES // 2)
        if not hidden_BT.any():
            return None
        shown_BT = torch.where(hidden_BT, first["mask"].long()[:, None], tokens_BT)
        guesses = model(shown_BT, real_BT, selected_BT=hidden_BT).argmax(-1).tolist()
        tokens, places = tokens_BT[0].tolist(), hidden_BT[0].nonzero()[:SHOWN, 0].tolist()
        pieces, words = [], []
        begins = [0, *[place + 1 for place in places[:-1]]]
        for begin, place, guess in zip(begins, places, guesses[:SHOWN], strict=True):
            pieces.append(processor.decode(tokens[begin:place]).strip())
            hidden = processor.decode([tokens[place]]).strip()
            word = processor.decode([guess]).strip()
            words.append(word if guess == tokens[place] else f"{word} ({hidden})")
        return samples.line(" ___ ".join([*pieces, "…"]), ", ".join(words))

    def score(self, predictions: Arrays) -> dict[str, float]:
        nats, tokens, text_bytes = (predictions[name].sum() for name in ("nats", "tokens", "bytes"))
        metrics = language_metrics(float(nats), int(tokens), int(text_bytes))
        metrics["pseudo_perplexity"] = metrics.pop("perplexity")  # Salazar et al. 2020
        return metrics

    def reply(self, answers: Arrays, row: int, processor: TextProcessor) -> dict[str, Any]:
        """The loss in nats per token and the pseudo-perplexity of a text: low for usual texts."""
        loss = float(answers["nats"][row]) / int(answers["tokens"][row])
        return {"loss": loss, "pseudo_perplexity": math.exp(min(loss, 700.0))}


def text_mask(batch: Batch, real_BT: Tensor) -> Tensor:
    """Which tokens are text, bool (B, T): neither padding nor special tokens such as [CLS]."""
    positions_T = torch.arange(real_BT.shape[1], device=real_BT.device)
    ends_B = batch["tokens_length"] - batch["after"]
    return real_BT & (positions_T >= batch["before"][:, None]) & (positions_T < ends_B[:, None])


def hidden_losses(
    model: torch.nn.Module, shown_BT: Tensor, real_BT: Tensor, hidden_BT: Tensor, tokens_BT: Tensor
) -> Tensor:
    """Cross-entropy in nats of each of the N hidden tokens, float32 (N,).

    The logits of the other tokens are never computed. They are most of the work if the vocabulary
    is large.
    """
    logits_NV = model(shown_BT, real_BT, selected_BT=hidden_BT)
    return token_loss(logits_NV, tokens_BT[hidden_BT])


def model_vocabulary(model: torch.nn.Module) -> int:
    """The model's vocabulary size. A compiled model passes the attribute on."""
    return int(model.vocab_size)  # type: ignore[arg-type]
