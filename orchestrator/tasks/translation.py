"""Translation, or any other text into text: an encoder reads the source, a decoder writes."""

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
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks import samples
from orchestrator.tasks.metrics import language_metrics
from orchestrator.tasks.sequence_pairs import (
    answer_pairs,
    encode_pairs,
    pair_losses,
    predict_pairs,
    texts_of,
)
from orchestrator.tasks.task import Batch, Metric, Task

BEAMS = 4


class Translation(Task[TextProcessor]):
    """One tokenizer for both languages. Pairs that share a source come into one split."""

    metric = Metric("loss", "min")
    columns: ClassVar[dict[str, Kind]] = {"source": "text", "target": "text"}
    inputs = ("source",)
    counts = "tokens"
    families = ("encoder_decoder",)
    split_by = "source"

    def clean(self, row: Row) -> Row | None:
        source = unicodedata.normalize("NFC", row["source"]).strip()
        target = row["target"]
        if target is not None:  # of a request
            target = unicodedata.normalize("NFC", target).strip()
        return {"source": source, "target": target} if source and target != "" else None

    def fit_processor(self, rows: Iterable[Row]) -> TextProcessor:
        texts = (row[c] for row in rows for c in self.columns)
        return fit_text(texts, self.tokenizer, self.model)

    def load_processor(self, content: bytes) -> TextProcessor:
        return TextProcessor.from_bytes(content)

    def encode(self, rows: list[Row], processor: TextProcessor) -> Arrays:
        sources = processor.encode_batch([row["source"] for row in rows])
        targets = [row["target"] or "" for row in rows]
        return encode_pairs(sources, targets, processor, self.model.max_seq_len)

    def keep(self, rows: list[Row]) -> Arrays:
        """The whole texts: references are not what fits into max_seq_len."""
        return {f"{c}_text": np.array([row[c] for row in rows], dtype=object) for c in self.columns}

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses_BT, real_BT = pair_losses(model, batch)
        return losses_BT.sum(), real_BT.sum().float()

    def predict(self, model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
        return predict_pairs(model, batch, processor)

    def answer(self, model: Transformer, batch: Batch, processor: TextProcessor) -> Arrays:
        return answer_pairs(model, batch, processor, BEAMS)

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        source = batch["source"][0, : int(batch["source_length"][0])].tolist()
        target = samples.generated_target(model, batch, processor)
        return samples.line(processor.decode(source), target)

    def reply(self, answers: Arrays, row: int, processor: TextProcessor) -> dict[str, Any]:
        return {"target": answers["said"][row]}

    def score(self, predictions: Arrays) -> dict[str, float]:
        nats, tokens, text_bytes = (predictions[name].sum() for name in ("nats", "tokens", "bytes"))
        metrics = language_metrics(float(nats), int(tokens), int(text_bytes))
        if "said" in predictions:
            metrics |= _translation_metrics(predictions["said"], predictions["target_text"])[0]
        return metrics

    def explain(self, predictions: Arrays) -> str:
        return " · ".join(_translation_metrics(predictions["said"], predictions["target_text"])[1])

    def baselines(
        self, train: Arrays, test: Arrays, processor: TextProcessor
    ) -> dict[str, dict[str, float]]:
        from orchestrator.tasks.baselines import dictionary

        sources, wanted = list(test["source_text"]), list(test["target_text"])
        known, targets = (texts_of(train, name, processor) for name in ("source", "target"))
        return {
            "copy of the source": _translation_metrics(sources, wanted)[0],
            "word by word": _translation_metrics(dictionary(known, targets, sources), wanted)[0],
        }


def _translation_metrics(said: Any, wanted: Any) -> tuple[dict[str, float], list[str]]:
    """Corpus BLEU and chrF by sacreBLEU, and the signatures of both. Post 2018."""
    from sacrebleu.metrics.bleu import BLEU  # of use after a training only
    from sacrebleu.metrics.chrf import CHRF

    references = [list(wanted)]
    kinds = {"bleu": BLEU(tokenize=_tokenizer(references[0])), "chrf": CHRF()}
    scores = {name: kind.corpus_score(list(said), references).score for name, kind in kinds.items()}
    return scores, [f"{name}: {kind.get_signature()}" for name, kind in kinds.items()]


def _tokenizer(texts: list[str]) -> str:
    """sacreBLEU's for text without spaces where most of it is Chinese or Japanese, else its own."""
    letters = [c for text in texts for c in text if c.isalpha()]
    wide = sum("\u3040" <= c <= "\u9fff" for c in letters)
    return "zh" if wide > len(letters) / 2 else "13a"
