"""Lightning's Trainer around the same model: python -m ... FOLDER PROCESSES.

Its precision without a word is fp32. It starts its further processes itself.
"""

import sys
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.peers.work import RowDataset, Steps, Work, mean_loss


class Learner(lightning.LightningModule):
    def __init__(self, work: Work, steps: Steps) -> None:
        super().__init__()
        self.work = work
        self.steps = steps
        self.model = work.build_model()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return mean_loss(self.model, batch["tokens"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.work.build_optimizer(self.model)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.steps.ended(outputs["loss"])


def main() -> None:
    work, processes = Work.load(sys.argv[1]), int(sys.argv[2])
    steps = Steps()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=work.steps,
        gradient_clip_val=work.grad_clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = DataLoader(RowDataset(work), batch_size=work.batch // processes, shuffle=True)
    trainer.fit(Learner(work, steps), rows)
    if trainer.is_global_zero:
        steps.print()


if __name__ == "__main__":
    main()
