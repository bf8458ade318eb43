"""Translation, or any other text-to-text task: an encoder reads the source, and a decoder writes
the target."""

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
from orchestrator.processors.text import TextProcessor
from orchestrator.tasks import samples
from orchestrator.tasks.metrics import language_metrics
from orchestrator.tasks.sequence_to_sequence import (
    decode_column,
    encode_sequences,
    generate_targets,
    loss_totals,
    target_losses,
)
from orchestrator.tasks.task import Batch, Metric, Task

BEAMS = 4


class Translation(Task[TextProcessor]):
    """Both languages share one tokenizer. Rows with the same source go into the same split."""

    metric = Metric("loss", "min")
    columns: ClassVar[dict[str, str]] = {"source": "text", "target": "text"}
    inputs = ("source",)
    pipeline = "translation"
    counts = "tokens"
    families = ("encoder_decoder",)
    split_by = "source"

    def clean(self, row: Row) -> Row | None:
        source = unicodedata.normalize("NFC", row["source"]).strip()
        target = row["target"]
        if target is not None:  # a request to the endpoint has none
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
        return encode_sequences(sources, targets, processor, self.model.max_seq_len)

    def keep(self, rows: list[Row]) -> Arrays:
        """The whole texts, since a reference is not cut to max_seq_len."""
        return {f"{c}_text": np.array([row[c] for row in rows], dtype=object) for c in self.columns}

    def build_model(self, vocab_size: int, num_outputs: int) -> Transformer:
        return Transformer(self.model, vocab_size)

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        losses_BT, real_BT = target_losses(model, batch)
        return losses_BT.sum(), real_BT.sum().float()

    def predict(self, model: torch.nn.Module, batch: Batch, processor: TextProcessor) -> Arrays:
        return loss_totals(model, batch)

    def answer(self, model: Transformer, batch: Batch, processor: TextProcessor) -> Arrays:
        return generate_targets(model, batch, processor, BEAMS)

    def sample(self, model: Transformer, batch: Batch, processor: TextProcessor) -> str | None:
        source = batch["source"][0, : int(batch["source_length"][0])].tolist()
        target = samples.generated_target(model, batch, processor)
        return samples.line(processor.decode(source), target)

    def reply(self, answers: Arrays, row: int, processor: TextProcessor) -> dict[str, Any]:
        return {"target": answers["predictions"][row]}

    def score(self, predictions: Arrays) -> dict[str, float]:
        nats, tokens, text_bytes = (predictions[name].sum() for name in ("nats", "tokens", "bytes"))
        metrics = language_metrics(float(nats), int(tokens), int(text_bytes))
        if "predictions" in predictions:
            generated, references = predictions["predictions"], predictions["target_text"]
            metrics |= _translation_metrics(generated, references)[0]
        return metrics

    def explain(self, predictions: Arrays) -> str:
        generated, references = predictions["predictions"], predictions["target_text"]
        return " · ".join(_translation_metrics(generated, references)[1])

    def baselines(
        self, train: Arrays, test: Arrays, processor: TextProcessor
    ) -> dict[str, dict[str, float]]:
        from orchestrator.tasks.baselines import translate_by_word  # imports scikit-learn: slow

        sources, references = list(test["source_text"]), list(test["target_text"])
        train_sources, train_targets = (
            decode_column(train, name, processor) for name in ("source", "target")
        )
        by_word = translate_by_word(train_sources, train_targets, sources)
        return {
            "copy of the source": _translation_metrics(sources, references)[0],
            "word by word": _translation_metrics(by_word, references)[0],
        }


def _translation_metrics(generated: Any, references: Any) -> tuple[dict[str, float], list[str]]:
    """Corpus BLEU and chrF by sacreBLEU (Post 2018), and the signature of each."""
    from sacrebleu.metrics.bleu import BLEU  # imported here, since training does not need it
    from sacrebleu.metrics.chrf import CHRF

    texts = list(references)
    metrics = {"bleu": BLEU(tokenize=_tokenizer(texts)), "chrf": CHRF()}
    scores = {
        name: metric.corpus_score(list(generated), [texts]).score
        for name, metric in metrics.items()
    }
    return scores, [f"{name}: {metric.get_signature()}" for name, metric in metrics.items()]


def _tokenizer(texts: list[str]) -> str:
    """sacreBLEU's tokenizer: `zh` if most letters are Chinese or Japanese, else its default."""
    letters = [c for text in texts for c in text if c.isalpha()]
    wide = sum("\u3040" <= c <= "\u9fff" for c in letters)
    return "zh" if wide > len(letters) / 2 else "13a"
