"""A trained model: loaded in one place, for evaluation, the endpoint, export and validation."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from orchestrator.data.arrays import Arrays
from orchestrator.errors import StageError
from orchestrator.infer.batch import kept_columns, to_device
from orchestrator.infer.precision import autocast, convert_weights
from orchestrator.model.transformer import Transformer
from orchestrator.storage.artifact import Checkpoint, Precision, PreparedData
from orchestrator.storage.checkpoint_files import MODEL_FILE, read_tensors
from orchestrator.tasks.task import Processor, Task

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainedModel:
    """A model with the task and the processor that it belongs to, where and how it computes."""

    task: Task[Any]
    processor: Any  # the `Processor` of the task
    model: Transformer
    device: torch.device = CPU
    precision: Precision = "fp32"

    @classmethod
    def load(
        cls,
        task: Task[Any],
        prepared: PreparedData,
        checkpoint: Checkpoint,
        device: torch.device = CPU,
        precision: Precision = "fp32",
    ) -> Self:
        """A checkpoint's model on `device`, ready to predict.

        Raises:
            StageError: if the checkpoint is damaged or belongs to another model.
        """
        processor = load_processor(task, prepared)
        model = task.build_model(processor.vocab_size, processor.num_outputs)
        load_weights(model, checkpoint)
        convert_weights(model, precision)
        return cls(task, processor, model.to(device).eval(), device, precision)

    @torch.inference_mode()
    def predict(self, arrays: Arrays, generate: bool = True) -> Arrays:
        """The task's predictions for encoded rows, with the columns that `Task.keep` kept.

        Args:
            generate: whether the task generates its answers, too; that takes much longer.
        """
        batch = to_device(arrays, self.device)
        with autocast(self.device, self.precision):
            predictions = self.task.predict(self.model, batch, self.processor)
            if generate:
                predictions |= self.task.answer(self.model, batch, self.processor)
        return {**predictions, **kept_columns(arrays)}


def load_processor(task: Task[Any], prepared: PreparedData) -> Processor:
    """The processor that was fitted to the prepared data."""
    processor: Processor = task.load_processor(prepared.folder.read(prepared.processor))
    return processor


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Set a model's weights to those of a checkpoint.

    Raises:
        StageError: if the checkpoint is damaged or belongs to another model.
    """
    tensors = read_tensors(checkpoint, MODEL_FILE)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise StageError(f"{checkpoint.folder} is of another model: {reason}") from error
