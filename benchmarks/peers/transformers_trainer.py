"""Hugging Face's Trainer around the same model: python -m ... FOLDER [bf16].

Its precision without a word is fp32, its optimizer a fused AdamW, its loader has no workers.
Started by torchrun it is data-parallel.
"""

import os
import sys
import tempfile
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.peers.work import RowDataset, Steps, Work, mean_loss


class WithLoss(nn.Module):
    """The Trainer wants a model that returns its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.last = None

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        self.last = mean_loss(self.model, tokens)
        return {"loss": self.last}


class Timer(TrainerCallback):
    def __init__(self, steps: Steps, model: WithLoss) -> None:
        self.steps = steps
        self.model = model

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.model.last is not None
        self.steps.ended(self.model.last)


def main() -> None:
    work = Work.load(sys.argv[1])
    steps = Steps()
    model = WithLoss(work.build_model())
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=sys.argv[2:] == ["bf16"],
            ddp_backend="gloo" if processes > 1 else None,
            per_device_train_batch_size=work.batch // processes,
            max_steps=work.steps,
            optim="adamw_torch_fused",
            learning_rate=work.lr,
            lr_scheduler_type="constant",
            adam_beta1=work.betas[0],
            adam_beta2=work.betas[1],
            weight_decay=work.weight_decay,
            max_grad_norm=work.grad_clip,
            seed=work.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(
            model, settings, train_dataset=RowDataset(work), callbacks=[Timer(steps, model)]
        ).train()
    if os.environ.get("RANK", "0") == "0":
        steps.print()


if __name__ == "__main__":
    main()
