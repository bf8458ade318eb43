"""Generative question answering: an encoder reads the context and the question, and a decoder
writes the answer."""

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
from orchestrator.processors.text import TextProcessor, commonest
from orchestrator.tasks import samples
from orchestrator.tasks.answers import clean_answers, keep_answers, pack, score_answers, unpack
from orchestrator.tasks.objectives import token_loss
from orchestrator.tasks.sequence_to_sequence import (
    decode_column,
    encode_sequences,
    generate_targets,
    target_logits,
    target_losses,
)
from orchestrator.tasks.task import Batch, Metric, Task


class QuestionAnswering(Task[TextProcessor]):
    """The source is the context, an end token, and the question. If there are several answers,
    training uses the first, and the score uses the best match.

    The context is optional. The question stands last, next to the end of the context: if a context
    reports changes, its latest facts count. For the same reason a source that is too long loses
    the beginning of its context.
    """

    metric = Metric("exact_match", "max")
    columns: ClassVar[dict[str, str]] = {
        "context": "text",
        "question": "text",
        "answer": "answers",
    }
    inputs = ("context", "question")
    pipeline = "question-answering"
    optional = ("context",)
    context = 512
    counts = "tokens"
    families = ("encoder_decoder",)

    def clean(self, row: Row) -> Row | None:
        texts = {c: unicodedata.normalize("NFC", row[c]).strip() for c in self.inputs}
        if not texts["question"]:
            return None
        return {**texts, "answer": pack(clean_answers(row["answer"]))}

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
            ending = [processor.end_token, *question, *processor.suffix]
            room = max(self.model.max_seq_len - len(ending) - len(processor.prefix), 0)
            sources.append([*processor.prefix, *context[max(len(context) - room, 0) :], *ending])
        answers = [_first(row) for row in rows]
        return encode_sequences(sources, answers, processor, self.model.max_seq_len)

    def keep(self, rows: list[Row]) -> Arrays:
        return keep_answers(rows)

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses_BT, real_BT = target_losses(model, batch)
        return losses_BT.sum(), real_BT.sum().float()

    def predict(self, model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
        """`right`: whether every token of the answer is the most probable one after those before
        it, that is, whether greedy generation would write the whole answer. Also each row's nats
        and tokens."""
        logits_BTV, targets_BT, real_BT = target_logits(model, batch)
        right_BT = (logits_BTV.argmax(-1) == targets_BT) | ~real_BT
        losses_BT = token_loss(logits_BTV, targets_BT) * real_BT
        return {
            "right": right_BT.all(1).cpu().numpy(),
            "nats": losses_BT.double().sum(1).cpu().numpy(),
            "tokens": real_BT.sum(1).cpu().numpy(),
        }

    def answer(self, model: Transformer, batch: Batch, processor: TextProcessor) -> Arrays:
        return generate_targets(model, batch, processor, num_beams=1)

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        source = batch["source"][0, : int(batch["source_length"][0])].tolist()
        begin = source.index(processor.end_token) if processor.end_token in source else 0
        answer = samples.generated_target(model, batch, processor)
        return samples.line(processor.decode(source[begin:]), answer)

    def reply(self, answers: Arrays, row: int, processor: TextProcessor) -> dict[str, Any]:
        return {"answer": answers["predictions"][row]}

    def score(self, predictions: Arrays) -> dict[str, float]:
        if "predictions" in predictions:
            metrics = score_answers(predictions["predictions"], predictions)
        else:
            metrics = {"exact_match": float(predictions["right"].mean())}
        return metrics | {"loss": float(predictions["nats"].sum() / predictions["tokens"].sum())}

    def baselines(
        self, train: Arrays, test: Arrays, processor: TextProcessor
    ) -> dict[str, dict[str, float]]:
        """The commonest training answer, over all questions and to the same question."""
        answers = decode_column(train, "target", processor)
        train_questions, questions = (
            _questions(arrays, processor.end_token) for arrays in (train, test)
        )
        usual = commonest(answers)
        by_question: dict[bytes, list[str]] = {}
        for question, answer in zip(train_questions, answers, strict=True):
            by_question.setdefault(question, []).append(answer)
        predictions = [commonest(by_question[q]) if q in by_question else usual for q in questions]
        return {
            "commonest answer": score_answers([usual] * len(predictions), test),
            "commonest to the question": score_answers(predictions, test),
        }


def _first(row: Row) -> str:
    """The answer that training uses; an empty text for a request to the endpoint."""
    return next(iter(unpack(row["answer"])), "")


def _questions(arrays: Arrays, end: int) -> list[bytes]:
    """The question of each source, as the bytes of the tokens from the end token on."""
    stops = (arrays["source"] == end).argmax(1)
    return [
        np.ascontiguousarray(row[stop:length]).tobytes()
        for row, stop, length in zip(arrays["source"], stops, arrays["source_length"], strict=True)
    ]
