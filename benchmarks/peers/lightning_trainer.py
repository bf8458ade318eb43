"""The same training with Lightning's Trainer, which starts its further processes itself.

    python -m benchmarks.peers.lightning_trainer FOLDER PROCESSES

The precision is Lightning's default, fp32.
"""

import sys
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.workload import RowDataset, StepTimer, Workload, mean_loss


class Learner(lightning.LightningModule):
    def __init__(self, workload: Workload, timer: StepTimer) -> None:
        super().__init__()
        self.workload = workload
        self.timer = timer
        self.model = workload.build_model()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return mean_loss(self.model, batch["tokens"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.workload.build_optimizer(self.model)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.timer.ended(outputs["loss"])


def main() -> None:
    workload, processes = Workload.load(sys.argv[1]), int(sys.argv[2])
    timer = StepTimer()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=workload.steps,
        gradient_clip_val=workload.grad_clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = DataLoader(RowDataset(workload), batch_size=workload.batch // processes, shuffle=True)
    trainer.fit(Learner(workload, timer), rows)
    if trainer.is_global_zero:
        timer.print()


if __name__ == "__main__":
    main()
