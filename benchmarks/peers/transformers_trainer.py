"""The same training with Hugging Face's Trainer.

    python -m benchmarks.peers.transformers_trainer FOLDER [bf16]

Without `bf16`, the precision is the Trainer's default, fp32. The optimizer is fused AdamW, and the
loader has no workers. With torchrun it is data-parallel.
"""

import os
import sys
import tempfile
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.peers.workload import RowDataset, StepTimer, Workload, mean_loss


class WithLoss(nn.Module):
    """A model that returns its loss, as the Trainer requires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.last = None

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        self.last = mean_loss(self.model, tokens)
        return {"loss": self.last}


class Timer(TrainerCallback):
    def __init__(self, timer: StepTimer, model: WithLoss) -> None:
        self.timer = timer
        self.model = model

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.model.last is not None
        self.timer.ended(self.model.last)


def main() -> None:
    workload = Workload.load(sys.argv[1])
    timer = StepTimer()
    model = WithLoss(workload.build_model())
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            bf16=sys.argv[2:] == ["bf16"],
            ddp_backend="gloo" if processes > 1 else None,
            per_device_train_batch_size=workload.batch // processes,
            max_steps=workload.steps,
            optim="adamw_torch_fused",
            learning_rate=workload.lr,
            lr_scheduler_type="constant",
            adam_beta1=workload.betas[0],
            adam_beta2=workload.betas[1],
            weight_decay=workload.weight_decay,
            max_grad_norm=workload.grad_clip,
            seed=workload.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(
            model, settings, train_dataset=RowDataset(workload), callbacks=[Timer(timer, model)]
        ).train()
    if os.environ.get("RANK", "0") == "0":
        timer.print()


if __name__ == "__main__":
    main()
