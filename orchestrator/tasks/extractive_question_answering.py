"""Extractive question answering: the answer is a span of the context, and the model predicts its
first and its last token (Rajpurkar et al. 2016). The head is BERT's (Devlin et al. 2019, section
4.2)."""

import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks import samples
from orchestrator.tasks.answers import clean_answers, keep_answers, pack, score_answers, unpack
from orchestrator.tasks.metrics import answer_words
from orchestrator.tasks.objectives import trimmed
from orchestrator.tasks.task import Batch, Metric, Task

LONGEST_ANSWER = 32  # tokens
SENTENCE_ENDS = ".!?。！？\n"


class ExtractiveQuestionAnswering(Task[TextProcessor]):
    """A sample is the question, an end token, and the context, cut to max_seq_len tokens.

    If the answer lies beyond the cut, training ignores the row, and evaluation counts it as a
    mistake. If `answer_start` is missing, the answer's first occurrence is the target. If there
    are several answers, training uses the first that occurs in the context, and the score uses
    the best match.
    """

    metric = Metric("f1", "max")
    columns: ClassVar[dict[str, str]] = {
        "context": "text",
        "question": "text",
        "answer": "answers",
        "answer_start": "starts",
    }
    inputs = ("context", "question")
    pipeline = "question-answering"
    outputs = ("start", "end")  # the head's logits for each token
    optional = ("answer_start",)
    context = 384
    families = ("encoder",)

    def clean(self, row: Row) -> Row | None:
        context, question = (unicodedata.normalize("NFC", row[c]) for c in self.inputs)
        if not (context.strip() and question.strip()):
            return None
        answers = clean_answers(row["answer"])
        start = 0
        if answers is not None:
            start, target = _locate(context, answers, row)
            answers = [target, *[answer for answer in answers if answer != target]]
        return {
            "context": context,
            "question": question.strip(),
            "answer": pack(answers),
            "answer_start": str(start),
        }

    def fit_processor(self, rows: Iterable[Row]) -> TextProcessor:
        texts = (row[c] for row in rows for c in ("context", "question"))
        return fit_text(texts, self.tokenizer, self.model)

    def load_processor(self, content: bytes) -> TextProcessor:
        return TextProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: TextProcessor) -> Arrays:
        length = self.model.max_seq_len
        questions = processor.encode_plain_batch([row["question"] for row in rows])
        before, after = processor.prefix, processor.suffix
        contexts = processor.encode_with_offsets([row["context"] for row in rows])
        tokens = []
        # Positions of the context's first token, and of the answer's first and last: -1 if cut off.
        positions = np.full((len(rows), 3), -1, dtype=np.int32)
        for i, (row, question, (context, offsets)) in enumerate(
            zip(rows, questions, contexts, strict=True)
        ):
            opening = [*before, *question[: length // 2], processor.end_token]
            context_start = len(opening)
            tokens.append([*opening, *context, *after])
            positions[i, 0] = context_start
            start = int(row["answer_start"])
            target = next(iter(unpack(row["answer"])), "")
            span = [
                context_start + token
                for token, (first, last) in enumerate(offsets)
                if last > start and first < start + len(target)
            ]
            if span and span[-1] < length - len(after):
                positions[i, 1:] = span[0], span[-1]
        context_starts, answer_starts, answer_ends = positions.T.copy()
        return {
            **processor.padded("tokens", tokens, length),
            "context": context_starts,
            "start": answer_starts,
            "end": answer_ends,
        }

    def keep(self, rows: list[Row]) -> Arrays:
        return keep_answers(rows)

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size, "each_token", 2)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        nats_B, known_B = self._nats(self._logits(model, batch), batch)
        return nats_B.sum(), known_B.sum().float()

    def predict(self, model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
        logits_B2T = self._logits(model, batch)
        nats_B, known_B = self._nats(logits_B2T, batch)
        log_probs_B2T = logits_B2T.log_softmax(-1)
        # The log-probability of each span, from its first token (rows) to its last (columns).
        spans_BTT = log_probs_B2T[:, 0, :, None] + log_probs_B2T[:, 1, None, :]
        allowed_TT = torch.ones_like(spans_BTT[0]).triu().tril(LONGEST_ANSWER - 1).bool()
        spans_BTT = spans_BTT.masked_fill(~allowed_TT, -torch.inf)
        best_B, index_B = spans_BTT.flatten(1).max(1)
        tokens = batch["tokens"].cpu().tolist()
        length = spans_BTT.shape[-1]
        spans = [divmod(index, length) for index in index_B.tolist()]
        answers = [
            processor.decode(row[start : end + 1]).strip(" \n\t�")
            for row, (start, end) in zip(tokens, spans, strict=True)
        ]
        return {
            "predictions": np.array(answers, dtype=object),
            "probability": best_B.exp().cpu().numpy(),
            **self._span_in_context(spans, batch),
            "nats": nats_B.cpu().numpy(),
            "known": known_B.cpu().numpy(),
        }

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        first = {name: tensor[:1] for name, tensor in batch.items()}
        question = first["tokens"][0, : int(first["context"][0])].tolist()
        answer = self.reply(self.predict(model, first, processor), 0, processor)["answer"]
        return samples.line(processor.decode(question), answer)

    def reply(self, answers: Arrays, row: int, processor: TextProcessor) -> dict[str, Any]:
        return {
            "answer": answers["predictions"][row],
            "probability": float(answers["probability"][row]),
        }

    def score(self, predictions: Arrays) -> dict[str, float]:
        known = predictions["known"].sum()  # 0 if all answers lie beyond max_seq_len
        loss = {"loss": float(predictions["nats"].sum() / known)} if known else {}
        return score_answers(predictions["predictions"], predictions) | loss

    def baselines(
        self, train: Arrays, test: Arrays, processor: TextProcessor
    ) -> dict[str, dict[str, float]]:
        """The sentence of the context that shares the most words with the question."""
        sentences = []
        for row, context_start, length in zip(
            test["tokens"].tolist(), test["context"], test["tokens_length"], strict=True
        ):
            question = set(answer_words(processor.decode(row[: context_start - 1])))
            candidates = _sentences(processor.decode(row[context_start:length]))
            sentences.append(max(candidates, key=lambda s: len(question & set(answer_words(s)))))
        return {"sentence like the question": score_answers(sentences, test)}

    def _logits(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """The logits of each token as the answer's first and last: float32 (B, 2, T). Tokens
        outside the context get a very low logit."""
        tokens_BT, real_BT = trimmed(batch, "tokens")
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        outside_BT = ~real_BT | (positions_T < batch["context"][:, None])
        outside_BT &= ~outside_BT.all(1, keepdim=True)  # unless the whole context is cut off
        logits_B2T = model(tokens_BT, real_BT).float().mT
        return logits_B2T.masked_fill(outside_BT[:, None], torch.finfo(torch.float32).min / 4)

    def _span_in_context(self, spans: list[tuple[int, int]], batch: Batch) -> Arrays:
        """`first` and `last`, (B,): the answer's tokens, counted from the context's first one.
        Negative if the whole context is cut off."""
        spans_B2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
        spans_B2 = spans_B2 - batch["context"].cpu().numpy()[:, None]
        return {"first": spans_B2[:, 0], "last": spans_B2[:, 1]}

    def _nats(self, logits_B2T: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, the mean over start and end, and whether the answer is within
        max_seq_len: both (B,). The loss is 0 if it is not."""
        known_B = batch["start"] >= 0
        bounds_B2 = torch.stack([batch["start"], batch["end"]], 1).long().clamp(min=0)
        nats_B2 = F.cross_entropy(logits_B2T.transpose(1, 2), bounds_B2, reduction="none")
        return torch.where(known_B, nats_B2.mean(1), 0.0), known_B


def _locate(context: str, answers: list[str], row: Row) -> tuple[int, str]:
    """The first answer that occurs in the context: its position in characters, and its text.

    If it occurs several times, the occurrence nearest to the row's `answer_start` counts.

    Raises:
        ValueError: if no answer occurs in the context, or if `answer_start` is not a number.
    """
    starts = _starts(row)
    raw = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
    texts = [unicodedata.normalize("NFC", text).strip() for text in raw]
    for answer in answers:
        # `starts` counts blank and repeated answers too, which `answers` no longer holds.
        start = starts[min(texts.index(answer), len(starts) - 1)] if starts else 0
        # `start` counts characters of the context before its normalisation.
        near = len(unicodedata.normalize("NFC", row["context"][:start]))
        after, before = context.find(answer, near), context.rfind(answer, 0, near + len(answer))
        positions = [position for position in (after, before) if position >= 0]
        if positions:
            return min(positions, key=lambda position: abs(position - near)), answer
    raise ValueError(f"the answer {answers[0][:80]!r} does not occur in the context")


def _starts(row: Row) -> list[int]:
    """The row's `answer_start`, one number for each answer; empty if it is missing."""
    column = row["answer_start"]
    try:
        values = column.split() if isinstance(column, str) else column or []
        return [max(int(float(value)), 0) for value in values]
    except (ValueError, OverflowError):
        raise ValueError(f"answer_start {column!r} is not a number") from None


def _sentences(text: str) -> list[str]:
    """The sentences of a text, without the spaces around them."""
    sentences, start = [], 0
    for position, character in enumerate(text):
        if character in SENTENCE_ENDS:
            sentences.append(text[start : position + 1].strip())
            start = position + 1
    return [*sentences, text[start:].strip()]
