"""A short script with the structure of timm's train.py, for tests that run without it.

It takes the same flags, builds loaders, student and distillation task by the same functions of
timm, and writes the same ``summary.csv``. It knows nothing of logitcache.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from timm import utils
from timm.data import (
    FastCollateMixup,
    Mixup,
    create_dataset,
    create_loader,
    resolve_data_config,
)
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from torch import nn


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("data-dir", "val-split", "model", "initial-checkpoint", "output", "experiment"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--train-split", default="train")
    parser.set_defaults(experiment="run", output="output", opt="sgd", device="cpu")
    parser.set_defaults(lr=0.05, weight_decay=0.0, workers=1, seed=0)
    parser.add_argument("--kd-model-name")
    for name in ("num-classes", "img-size", "epochs", "batch-size", "workers", "seed"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("lr", "task-loss-weight", "weight-decay", "warmup-epochs", "decay-epochs"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--kd-temperature", type=float, default=4.0)
    for name in ("mixup", "cutmix", "smoothing", "mixup-prob", "mixup-switch-prob"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--cutmix-minmax", type=float, nargs=2)
    parser.add_argument("--mixup-mode")
    parser.add_argument("--mixup-off-epoch", type=int, default=0)
    parser.add_argument("--bce-loss", action="store_true")
    parser.add_argument("--hflip", type=float, default=0.5)
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=utils.ParseKwargs)
    for name in ("device", "sched", "opt"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--class-map", default="")
    parser.add_argument("--no-prefetcher", action="store_true")
    return parser.parse_args()


def loader(
    args: argparse.Namespace, config: dict[str, Any], device: Any, collate: Any, *, train: bool
) -> Any:
    split = args.train_split if train else args.val_split
    dataset = create_dataset(
        "", root=args.data_dir, split=split, is_training=train, class_map=args.class_map
    )
    augmentation: dict[str, Any] = {"hflip": args.hflip, "scale": (0.08, 1.0)} if train else {}
    return create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=args.batch_size,
        is_training=train,
        mean=config["mean"],
        std=config["std"],
        num_workers=args.workers,
        device=device,
        distributed=args.distributed,
        use_prefetcher=not args.no_prefetcher,
        img_dtype=torch.float32,
        batch_choice_seed=args.seed,
        collate_fn=collate,
        **augmentation,
    )


def main() -> None:
    args = parsed()
    device = utils.init_distributed_device(args)
    mixed = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    mixing: dict[str, Any] = {
        "mixup_alpha": args.mixup,
        "cutmix_alpha": args.cutmix,
        "num_classes": args.num_classes,
    }
    mix, collate = None, None
    if mixed and args.no_prefetcher:
        mix = Mixup(**mixing, label_smoothing=args.smoothing)
    elif mixed:
        collate = FastCollateMixup(**mixing, label_smoothing=args.smoothing)
    student = create_model(
        args.model,
        num_classes=args.num_classes,
        checkpoint_path=args.initial_checkpoint or "",
        **args.model_kwargs,
    )
    config = resolve_data_config(vars(args), model=student)
    batches = loader(args, config, device, collate, train=True)
    validation = loader(args, config, device, None, train=False) if args.val_split else None
    task = LogitDistillationTask(
        student,
        args.kd_model_name,
        criterion=criterion(args, mixed=mixed),
        task_loss_weight=args.task_loss_weight,
        temperature=args.kd_temperature,
        device=device,
        verbose=False,
    )
    if args.distributed:
        task.prepare_distributed()
    trainable: Any = task.get_trainable_module()
    optimizer = create_optimizer_v2(
        trainable, opt="sgd", lr=args.lr, weight_decay=args.weight_decay
    )
    for epoch in range(args.epochs):
        if hasattr(batches.batch_sampler, "set_epoch"):
            batches.batch_sampler.set_epoch(epoch)
        elif hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(epoch)
        task.train()
        losses = utils.AverageMeter()
        if args.mixup_off_epoch and epoch >= args.mixup_off_epoch and batches.mixup_enabled:
            batches.mixup_enabled = False
        for images, labels in batches:
            if mix is not None:
                images, labels = mix(images, labels)
            loss = task(images.to(device), labels.to(device))["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(loss.item(), len(images))
        student.eval()
        for images, _ in validation or ():
            with torch.no_grad():
                student(images)
        if utils.is_primary(args):
            note(Path(args.output) / args.experiment, epoch, losses.avg)
    if args.distributed:
        torch.distributed.destroy_process_group()


def criterion(args: argparse.Namespace, *, mixed: bool) -> nn.Module:
    if args.bce_loss:
        return BinaryCrossEntropy(smoothing=0.0 if mixed else args.smoothing)
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def note(folder: Path, epoch: int, loss: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "summary.csv").open("a", newline="") as file:
        writer = csv.writer(file)
        if epoch == 0:
            writer.writerow(["epoch", "train_loss"])
        writer.writerow([epoch, loss])


if __name__ == "__main__":
    main()
