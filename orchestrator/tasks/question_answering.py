"""Question answering in words of its own: an encoder reads the question and the text, a decoder
writes the answer."""

import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Kind, Row
from orchestrator.model.transformer import Transformer
from orchestrator.pretrained.model import fit_text
from orchestrator.processors.text import TextProcessor, commonest
from orchestrator.tasks import samples
from orchestrator.tasks.answers import clean_answers, keep_answers, pack, score_answers, unpack
from orchestrator.tasks.objectives import token_loss
from orchestrator.tasks.sequence_pairs import (
    answer_pairs,
    encode_pairs,
    pair_logits,
    pair_losses,
    texts_of,
)
from orchestrator.tasks.task import Batch, Metric, Task


class QuestionAnswering(Task[TextProcessor]):
    """The source is the context, an end token, and the question. Of several answers the first one
    is learned, and the best one counts.

    A question may come without a context. It stands last, near what was said last: of facts that
    change, that is what counts. So where both are too long, the context's beginning is cut.
    """

    metric = Metric("exact_match", "max")
    columns: ClassVar[dict[str, Kind]] = {
        "context": "text",
        "question": "text",
        "answer": "answers",
    }
    inputs = ("context", "question")
    optional = ("context",)
    context = 512
    counts = "tokens"
    families = ("encoder_decoder",)

    def clean(self, row: Row) -> Row | None:
        found = {c: unicodedata.normalize("NFC", row[c]).strip() for c in self.inputs}
        if not found["question"]:
            return None
        return {**found, "answer": pack(clean_answers(row["answer"]))}

    def fit_processor(self, rows: Iterable[Row]) -> TextProcessor:
        texts = (text for row in rows for text in (row["context"], row["question"], _first(row)))
        return fit_text(texts, self.tokenizer, self.model)

    def load_processor(self, content: bytes) -> TextProcessor:
        return TextProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: TextProcessor) -> Arrays:
        questions, contexts = (
            processor.encode_plain_batch([row[c] for row in rows]) for c in ("question", "context")
        )
        sources = []
        for question, context in zip(questions, contexts, strict=True):
            asked = [processor.end_token, *question, *processor.suffix]
            room = max(self.model.max_seq_len - len(asked) - len(processor.prefix), 0)
            sources.append([*processor.prefix, *context[max(len(context) - room, 0) :], *asked])
        answers = [_first(row) for row in rows]
        return encode_pairs(sources, answers, processor, self.model.max_seq_len)

    def keep(self, rows: list[Row]) -> Arrays:
        return keep_answers(rows)

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses_BT, real_BT = pair_losses(model, batch)
        return losses_BT.sum(), real_BT.sum().float()

    def predict(self, model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
        """Whether every token is the most probable one after those before it: then, and only then,
        greedy generation says the whole answer."""
        logits_BTV, targets_BT, real_BT = pair_logits(model, batch)
        right_BT = (logits_BTV.argmax(-1) == targets_BT) | ~real_BT
        losses_BT = token_loss(logits_BTV, targets_BT) * real_BT
        return {
            "right": right_BT.all(1).cpu().numpy(),
            "nats": losses_BT.double().sum(1).cpu().numpy(),
            "tokens": real_BT.sum(1).cpu().numpy(),
        }

    def answer(self, model: Transformer, batch: Batch, processor: TextProcessor) -> Arrays:
        return answer_pairs(model, batch, processor, num_beams=1)

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        source = batch["source"][0, : int(batch["source_length"][0])].tolist()
        begin = source.index(processor.end_token) if processor.end_token in source else 0
        answer = samples.generated_target(model, batch, processor)
        return samples.line(processor.decode(source[begin:]), answer)

    def reply(self, answers: Arrays, row: int, processor: TextProcessor) -> dict[str, Any]:
        return {"answer": answers["said"][row]}

    def score(self, predictions: Arrays) -> dict[str, float]:
        if "said" in predictions:
            found = score_answers(predictions["said"], predictions)
        else:
            found = {"exact_match": float(predictions["right"].mean())}
        return found | {"loss": float(predictions["nats"].sum() / predictions["tokens"].sum())}

    def baselines(
        self, train: Arrays, test: Arrays, processor: TextProcessor
    ) -> dict[str, dict[str, float]]:
        """The commonest answer of all, and of the same question."""
        known = texts_of(train, "target", processor)
        asked, questions = (_questions(arrays, processor.end_token) for arrays in (train, test))
        usual = commonest(known)
        by_question: dict[bytes, list[str]] = {}
        for question, answer in zip(asked, known, strict=True):
            by_question.setdefault(question, []).append(answer)
        said = [commonest(by_question[q]) if q in by_question else usual for q in questions]
        return {
            "commonest answer": score_answers([usual] * len(said), test),
            "commonest to the question": score_answers(said, test),
        }


def _first(row: Row) -> str:
    """The answer that is learned; nothing for a request."""
    return next(iter(unpack(row["answer"])), "")


def _questions(arrays: Arrays, end: int) -> list[bytes]:
    """What stands behind the end token of each source."""
    stops = (arrays["source"] == end).argmax(1)
    return [
        np.ascontiguousarray(row[stop:length]).tobytes()
        for row, stop, length in zip(arrays["source"], stops, arrays["source_length"], strict=True)
    ]
