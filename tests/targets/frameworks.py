"""A user's own training loops around ``loader()``: what each process is shown, batch by batch.

Started as a script: ``python -m tests.targets.frameworks FRAMEWORK CACHE IMAGES OUT BATCHES``. The
run stops after BATCHES batches; started once more with another number, it resumes from there. Each
process appends the rows of its batches to ``OUT/rank-R.jsonl``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from logitcache import loader, open_cache

if TYPE_CHECKING:
    from logitcache.targets.loader import Loader

BATCH, SIZE = 7, 8


def main(framework: str, cache: str, images: str, out: str, batches: int) -> None:
    torch.set_num_threads(1)
    with loader(open_cache(cache), images, batch_size=BATCH, size=SIZE, threads=1) as found:
        FRAMEWORKS[framework](found, Path(out), batches)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 3))


def note(out: Path, rank: int, epoch: int, rows: torch.Tensor) -> None:
    with (out / f"rank-{rank}.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": epoch, "rows": rows.tolist()}) + "\n")


def plain(found: Loader, out: Path, batches: int) -> None:
    """Train in a loop of torch alone; only the loader knows where it is."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    state = out / f"state-{rank}.json"
    if state.exists():
        found.load_state_dict(json.loads(state.read_text()))
    while True:
        epoch = found.state_dict()["epoch"]
        for pixels, targets in found:
            note(out, rank, epoch, targets.rows)
            loss = nn.functional.cross_entropy(model(pixels), targets.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            batches -= 1
            if batches == 0:
                state.write_text(json.dumps(found.state_dict()))
                distributed.destroy_process_group()
                return


def accelerate(found: Loader, out: Path, batches: int) -> None:
    """Train with accelerate, which saves and loads the loader with the rest."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    found = accelerator.prepare(found)
    accelerator.register_for_checkpointing(found)
    if (out / "state").exists():
        accelerator.load_state(str(out / "state"))
    while True:
        epoch = found.state_dict()["epoch"]
        for pixels, targets in found:
            note(out, accelerator.process_index, epoch, targets.rows)
            accelerator.backward(nn.functional.cross_entropy(model(pixels), targets.labels))
            optimizer.step()
            optimizer.zero_grad()
            batches -= 1
            if batches == 0:
                accelerator.save_state(str(out / "state"))
                accelerator.end_training()
                return


def lightning(found: Loader, out: Path, batches: int) -> None:
    """Train with Lightning's ddp, which starts the second process by itself."""
    import lightning  # type: ignore[import-not-found,unused-ignore]  # in .ci/matrix

    class Student(lightning.LightningModule):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, _: int) -> Any:
            pixels, targets = batch
            note(out, self.global_rank, self.current_epoch, targets.rows)
            return nn.functional.cross_entropy(self.network(pixels), targets.labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    every = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=out, filename="middle", every_n_train_steps=batches
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=batches,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[every],
        default_root_dir=out,
    )
    state = out / "middle.ckpt"
    trainer.fit(Student(), found, ckpt_path=state if state.exists() else None)


FRAMEWORKS = {"plain": plain, "accelerate": accelerate, "lightning": lightning}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    name, cache, images, out, batches = sys.argv[1:]
    main(name, cache, images, out, int(batches))
