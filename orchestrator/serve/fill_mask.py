"""Hugging Face's fill-mask pipeline, for masked language models: the likeliest words at a mask."""

import unicodedata
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.data.arrays import Arrays
from orchestrator.infer.batch import to_device
from orchestrator.infer.precision import autocast
from orchestrator.infer.trained_model import TrainedModel
from orchestrator.serve.predictor import Predictor
from orchestrator.serve.protocol import RefusedError

MOST_MASKS = 8  # of a text: each has a probability for each token of the vocabulary


class FillMask:
    """Fills the masks of texts in the batches that the predictor makes."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.processor = predictor.processor
        self._compute = partial(_fill, predictor.trained)  # one object, so that requests batch

    async def answer(self, inputs: list[Any], parameters: Any) -> list[Any]:
        """For each text a list of fillings; for a text of several masks, one list for each.

        Raises:
            RefusedError: if an input is no text with 1 to MOST_MASKS masks, or is too long.
        """
        rows: list[list[int]] = []

        def encode() -> Arrays:
            rows.extend(self._tokens(number, given) for number, given in enumerate(inputs))
            arrays = self.processor.padded("tokens", rows, self.predictor.task.model.max_seq_len)
            return arrays | {"mask": np.full(len(rows), self.processor.mask_token, np.int32)}

        answers = await self.predictor.compute(self._compute, encode)
        targets = self._targets(parameters.targets) if parameters.targets else None
        filled = []
        for row, answer in zip(rows, answers, strict=True):
            places = [i for i, token in enumerate(row) if token == self.processor.mask_token]
            lists = [
                self._fillings(row, place, probabilities, parameters.top_k, targets)
                for place, probabilities in zip(places, answer["probabilities"][0], strict=False)
            ]
            filled.append(lists[0] if len(lists) == 1 else lists)
        return filled

    def _tokens(self, number: int, given: Any) -> list[int]:
        processor, name = self.processor, f"inputs[{number}]"
        if not isinstance(given, str):
            raise RefusedError(f"{name}: must be a text", 422, param="inputs")
        try:
            given.encode()
        except UnicodeEncodeError:
            raise RefusedError(f"{name}: is not valid Unicode", param="inputs") from None
        # The tokenizer encodes a mask's name as text, so the text between the masks is encoded.
        pieces = unicodedata.normalize("NFC", given).split(processor.mask)
        if not 1 < len(pieces) <= MOST_MASKS + 1:
            raise RefusedError(
                f"{name}: must hold 1 to {MOST_MASKS} masks, written {processor.mask}",
                param="inputs",
            )
        first, *others = processor.encode_plain_batch([piece.rstrip(" ") for piece in pieces])
        tokens = [*processor.prefix, *first]
        for piece in others:
            tokens += [processor.mask_token, *piece]
        tokens += processor.suffix
        context = self.predictor.task.model.max_seq_len
        if len(tokens) > context:
            raise RefusedError(
                f"{name}: its {len(tokens)} tokens are more than the model's context of {context}",
                code="context_length_exceeded",
                param="inputs",
            )
        return tokens

    def _targets(self, words: list[str]) -> list[int]:
        """The first token of each word, as it stands within a text."""
        encoded = self.processor.encode_plain_batch(words)
        return list(dict.fromkeys(tokens[0] for tokens in encoded if tokens))

    def _fillings(
        self,
        row: list[int],
        place: int,
        probabilities: npt.NDArray[Any],
        top_k: int,
        targets: list[int] | None,
    ) -> list[dict[str, Any]]:
        tokens = np.arange(len(probabilities)) if targets is None else np.array(targets, np.int64)
        order = np.argsort(-probabilities[tokens], kind="stable")[:top_k]
        best: list[int] = tokens[order].tolist()
        decode = self.processor.decode
        return [
            {
                "score": float(probabilities[token]),
                "token": token,
                "token_str": decode([token]),
                "sequence": decode([*row[:place], token, *row[place + 1 :]]).strip(),
            }
            for token in best
        ]


@torch.inference_mode()
def _fill(trained: TrainedModel, arrays: Arrays) -> Arrays:
    batch = to_device(arrays, trained.device)
    with autocast(trained.device, trained.precision):
        filled: Arrays = trained.task.fill(trained.model, batch)  # type: ignore[attr-defined]
    return filled
