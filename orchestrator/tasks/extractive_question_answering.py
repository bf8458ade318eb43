"""Extractive question answering: the answer is a piece of the text, found by where it begins and
ends. Rajpurkar et al. 2016; the heads are BERT's, Devlin et al. 2019, section 4.2."""

import unicodedata
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.data.arrays import Arrays
from orchestrator.data.reading import Kind, Row
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
    """A sample is the question, an end token, and the context as far as max_seq_len lets it.

    An answer that lies beyond that cannot be found: such a row is not learned from, and counts as a
    mistake where it is tested. Without `answer_start`, the answer is where it first occurs. Of
    several answers the first that occurs in the context is learned, and the best one counts.
    """

    metric = Metric("f1", "max")
    columns: ClassVar[dict[str, Kind]] = {
        "context": "text",
        "question": "text",
        "answer": "answers",
        "answer_start": "starts",
    }
    inputs = ("context", "question")
    outputs = ("start", "end")  # of the head, for each token
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
            start, learned = _place(context, answers, row)
            answers = [learned, *[answer for answer in answers if answer != learned]]
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
        contexts = processor.encode_with_places([row["context"] for row in rows])
        tokens, bounds = [], np.full((len(rows), 3), -1, dtype=np.int32)
        for i, (row, question, (context, places)) in enumerate(
            zip(rows, questions, contexts, strict=True)
        ):
            asked = [*before, *question[: length // 2], processor.end_token]
            begin = len(asked)
            tokens.append([*asked, *context, *after])
            bounds[i, 0] = begin
            start = int(row["answer_start"])
            learned = next(iter(unpack(row["answer"])), "")
            within = [
                begin + at
                for at, (first, last) in enumerate(places)
                if last > start and first < start + len(learned)
            ]
            if within and within[-1] < length - len(after):
                bounds[i, 1:] = within[0], within[-1]
        context_at, start_at, end_at = bounds.T.copy()
        return {
            **processor.padded("tokens", tokens, length),
            "context": context_at,
            "start": start_at,
            "end": end_at,
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
        chances_B2T = logits_B2T.log_softmax(-1)
        # All pairs of a start and an end that is not before it, nor too far behind.
        pairs_BTT = chances_B2T[:, 0, :, None] + chances_B2T[:, 1, None, :]
        sensible_TT = torch.ones_like(pairs_BTT[0]).triu().tril(LONGEST_ANSWER - 1).bool()
        pairs_BTT = pairs_BTT.masked_fill(~sensible_TT, -torch.inf)
        best_B, at_B = pairs_BTT.flatten(1).max(1)
        tokens = batch["tokens"].cpu().tolist()
        length = pairs_BTT.shape[-1]
        spans = [divmod(at, length) for at in at_B.tolist()]
        said = [
            processor.decode(row[start : end + 1]).strip(" \n\t�")
            for row, (start, end) in zip(tokens, spans, strict=True)
        ]
        return {
            "said": np.array(said, dtype=object),
            "probability": best_B.exp().cpu().numpy(),
            "nats": nats_B.cpu().numpy(),
            "known": known_B.cpu().numpy(),
        }

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        first = {name: tensor[:1] for name, tensor in batch.items()}
        question = first["tokens"][0, : int(first["context"][0])].tolist()
        answer = self.reply(self.predict(model, first, processor), 0, processor)["answer"]
        return samples.line(processor.decode(question), answer)

    def reply(self, answers: Arrays, row: int, processor: TextProcessor) -> dict[str, Any]:
        return {"answer": answers["said"][row], "probability": float(answers["probability"][row])}

    def score(self, predictions: Arrays) -> dict[str, float]:
        known = predictions["known"].sum()  # not where all answers lie beyond max_seq_len
        loss = {"loss": float(predictions["nats"].sum() / known)} if known else {}
        return score_answers(predictions["said"], predictions) | loss

    def baselines(
        self, train: Arrays, test: Arrays, processor: TextProcessor
    ) -> dict[str, dict[str, float]]:
        """The sentence that shares most words with the question."""
        said = []
        for row, begin, length in zip(
            test["tokens"].tolist(), test["context"], test["tokens_length"], strict=True
        ):
            question = set(answer_words(processor.decode(row[: begin - 1])))
            sentences = _sentences(processor.decode(row[begin:length]))
            said.append(max(sentences, key=lambda s: len(question & set(answer_words(s)))))
        return {"sentence like the question": score_answers(said, test)}

    def _logits(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Of each token of the context to be the first and the last one: float32 (B, 2, T)."""
        tokens_BT, real_BT = trimmed(batch, "tokens")
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        outside_BT = ~real_BT | (positions_T < batch["context"][:, None])
        outside_BT &= ~outside_BT.all(1, keepdim=True)  # a context of which nothing is left
        logits_B2T = model(tokens_BT, real_BT).float().mT
        return logits_B2T.masked_fill(outside_BT[:, None], torch.finfo(torch.float32).min / 4)

    def _nats(self, logits_B2T: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of where the answer begins and of where it ends, their mean; 0 where it is not there."""
        known_B = batch["start"] >= 0
        bounds_B2 = torch.stack([batch["start"], batch["end"]], 1).long().clamp(min=0)
        nats_B2 = F.cross_entropy(logits_B2T.transpose(1, 2), bounds_B2, reduction="none")
        return torch.where(known_B, nats_B2.mean(1), 0.0), known_B


def _place(context: str, answers: list[str], row: Row) -> tuple[int, str]:
    """Where the first answer that occurs in the context begins, and that answer.

    It is where it occurs nearest to what the row says.
    """
    starts = _starts(row)
    given = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
    texts = [unicodedata.normalize("NFC", text).strip() for text in given]
    for answer in answers:
        # Blank answers and repeated ones, which are dropped, have starts too.
        said = starts[min(texts.index(answer), len(starts) - 1)] if starts else 0
        # Characters of the text as it was before it was normalised.
        near = len(unicodedata.normalize("NFC", row["context"][:said]))
        behind, before = context.find(answer, near), context.rfind(answer, 0, near + len(answer))
        found = [at for at in (behind, before) if at >= 0]
        if found:
            return min(found, key=lambda at: abs(at - near)), answer
    raise ValueError(f"the answer {answers[0][:80]!r} does not occur in the context")


def _starts(row: Row) -> list[int]:
    given = row["answer_start"]
    try:
        values = given.split() if isinstance(given, str) else given or []
        return [max(int(float(value)), 0) for value in values]
    except (ValueError, OverflowError):
        raise ValueError(f"answer_start {given!r} is no number") from None


def _sentences(text: str) -> list[str]:
    found, start = [], 0
    for at, character in enumerate(text):
        if character in SENTENCE_ENDS:
            found.append(text[start : at + 1].strip())
            start = at + 1
    return [*found, text[start:].strip()]
