"""The training loop, for students and, with labels alone, for teachers.

It trains a network on images, targets and an objective, and does not import or run teachers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import Interrupted, UsageError
from logitcache.networks.build import input_spec
from logitcache.objectives.combine import build_objective
from logitcache.students.build import build_student, completed, converted
from logitcache.training.batches import (
    batches_in,
    epochs_in,
    images_in,
    training_loader,
    without_partner,
)
from logitcache.training.classes import (
    class_count,
    class_names,
    reorder_classifier,
    validation_images,
)
from logitcache.training.distributed import DistributedContext
from logitcache.training.evaluation.evaluator import Evaluation, Evaluator
from logitcache.training.export.card import write_card
from logitcache.training.export.export import export_network
from logitcache.training.export.onnx import check_onnx_installed, export_onnx
from logitcache.training.hooks import Hooks, Step
from logitcache.training.images import ImageSets, check_labels, training_images
from logitcache.training.notes import class_notes, log_schedule, student_notes, temperature_notes
from logitcache.training.optimization.finite_loss import FiniteLoss
from logitcache.training.optimization.gradient import BatchGradient
from logitcache.training.optimization.image_sizes import ImageSizes
from logitcache.training.optimization.target_form import TargetForm
from logitcache.training.optimization.trainable_student import TrainableStudent, trained_part
from logitcache.training.run.journal import open_journal
from logitcache.training.run.progress import Clock, Pace, TrainProgress
from logitcache.training.run.result import TrainResult, write_result
from logitcache.training.run.state import RunState, previous_run
from logitcache.training.run.trackers import check_trackers_installed
from logitcache.training.sampler_hook import SamplerHook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from logitcache.batch import Features, TargetBatch
    from logitcache.data.readers import ImageSet
    from logitcache.training.config import TrainConfig
    from logitcache.training.hooks import Hook
    from logitcache.training.run.checkpoint import Checkpoint

    Answer = Callable[[Tensor, TargetBatch], TargetBatch]

__all__ = ["train_student"]

_REPORT_SECONDS = 0.5  # between progress reports; each reads the loss and so waits for the device
_NAMES = 3  # images that a note lists
_EXPORT = "export"
_ONNX = "model.onnx"


def train_student(
    config: TrainConfig,
    *,
    data: ImageSet | None = None,
    val: ImageSet | None = None,
    resume: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    answer: Answer | None = None,
    answer_features: Mapping[str, Features] | None = None,
    hooks: Mapping[str, Hook] | None = None,
) -> TrainResult:
    """Train one network, under ``torchrun`` on several processes.

    Args:
        config: Configuration of the run.
        data: Training images from Python, instead of ``config.data``.
        val: Validation images from Python, instead of ``config.val``.
        resume: Whether to resume an interrupted run; a finished run is not repeated.
        on_progress: Called at the start and then about twice per second, also during evaluation and
            export.
        should_stop: Called at every batch; if it returns true in any process, all processes stop
            after a checkpoint is written.
        answer: Called with every batch (normalized images and targets); returns the targets to use
            instead, for example of a live teacher that a cache is compared with.
        answer_features: Examples of one row of the features that ``answer`` returns, by
            ``<teacher>/<tap>``; those of the cache by default.
        hooks: Code that runs after steps and epochs, by name; its state is part of checkpoints, and
            a run is resumed with hooks of the same names.

    Raises:
        LogitcacheError: See :mod:`logitcache.errors`.
    """
    asking = [term.name for term in config.terms if term.term.needs.asks_teachers]
    if config.cache is None and answer is None and asking:
        raise UsageError(
            "the objectives need outputs of teachers, but there is no cache",
            where=f"objectives: {', '.join(asking)}",
            hint="give a cache, or use the objective label",
        )
    ranks = DistributedContext(config.device, config.precision)
    with ranks.together():
        previous, finished = ranks.first(lambda: previous_run(config, resume=resume))
        if previous is not None and finished is not None:
            return finished
        images = ImageSets.of(config, data, val)
        run = _Run(config, images, previous, answer, answer_features, ranks, Hooks(hooks))
        run.on_progress, run.should_stop = on_progress, should_stop
        try:
            result = run.train()
        finally:
            run.close()
        ranks.first(lambda: write_result(result))
    return result


class _Run:
    """The components and the state of one training run.

    Attributes:
        on_progress: Called with the progress about twice per second.
        should_stop: Called at every batch.
    """

    on_progress: Callable[[TrainProgress], None] | None = None
    should_stop: Callable[[], bool] | None = None

    def __init__(
        self,
        config: TrainConfig,
        images: ImageSets,
        previous: Checkpoint | None,
        answer: Answer | None,
        answer_features: Mapping[str, Features] | None,
        ranks: DistributedContext,
        hooks: Hooks,
    ) -> None:
        if config.onnx:
            check_onnx_installed()
        check_trackers_installed(config.log_with or [])
        # the same seed on all ranks, so that they initialize the same weights
        torch.manual_seed(config.seed)
        self._config = config
        self._answer = answer
        self._ranks = ranks
        self._hooks = hooks
        self._objective = build_objective(config.terms)
        self._accelerator = ranks.accelerator
        device = self._accelerator.device
        rows, targets = training_images(config, self._objective.needs, images.data)
        if targets is not None and targets.sampler is not None:
            hooks.add("sampler", SamplerHook(targets.sampler, ranks))
        self._notes = [*notes_of(rows.source), *temperature_notes(targets, config.terms)]
        self._notes += class_notes(targets, rows, config.terms)
        self._provenance = targets.reader.provenance if targets else None
        teachers = targets.reader.num_classes if targets else None
        logits, validated = self._objective.needs.student_logits, images.val is not None
        classes = class_count(config, rows, teachers, logits_needed=logits, validated=validated)
        check_labels(config, rows)
        self._class_names = class_names(config, rows, classes)
        network = build_student(config.student, classes)
        network = self._network = completed(network, config.student, self._class_names)
        self._spec = input_spec(network, config.final_size)
        if config.crop_pct is not None:
            self._spec = replace(self._spec, crop_pct=config.crop_pct)
        self._notes += reorder_classifier(network, config.student, self._class_names)
        self._notes += student_notes(network, config.student, self._spec.size, rows)
        cached = targets.reader.features if targets else {}
        part, example = trained_part(network, config.student, targets)
        self._trainable = TrainableStudent(
            part,
            self._objective,
            size=self._spec.size,
            features=cached if answer_features is None else answer_features,
            example=example,
        )
        self._notes += self._trainable.notes
        if answer is None:
            form = TargetForm.of(config, rows, targets)
            self._trainable.check_targets(form, classes, self._spec.size)
        self._gradient = BatchGradient(config, self._trainable, self._objective, ranks)
        self._loader, note = training_loader(
            config,
            rows,
            targets,
            spec=self._spec,
            ranks=ranks,
            device=device,
            smallest_batch=lambda: self._trainable.smallest_batch(
                config.size.start if config.size else self._spec.size
            ),
        )
        self._notes += note
        self._steps = config.steps or batches_in(self._loader, config.epochs or 1)
        self._epochs = config.epochs or epochs_in(self._loader, self._steps)
        self._sizes = ImageSizes.of(config.size, network, end=self._spec.size, epochs=self._epochs)
        if self._sizes.grows:
            self._check_sizes()
            self._notes.append(self._sizes.note())
        self._state = RunState(
            config, network, self._trainable, steps=self._steps, ranks=ranks, hooks=hooks
        )
        self._evaluator: Evaluator | None = None
        if images.val is not None:
            self._evaluator = Evaluator(
                validation_images(config, images.val, rows),
                self._spec,
                batch_size=-(-config.batch_size // ranks.count),
                device=device,
                threads=config.threads,
                ranks=ranks,
                on_bad_image=config.on_bad_image,
                out=Path(config.out),
                view=config.val_view,
            )
        if previous is not None:
            self._state.restore(previous)
            self._notes = [*previous.notes, *self._notes]
        else:  # only after all weights are initialized: from here on ranks draw different numbers
            ranks.reseed(config.seed, 0)
        log_schedule(config, self._steps, self._epochs, rows, targets, processes=ranks.count)
        self._journal = open_journal(config, self._state.step) if ranks.is_first else None
        self._finite = FiniteLoss(ranks, config.precision)
        self._clock = Clock()
        self._pace = Pace(_REPORT_SECONDS)

    def _check_sizes(self) -> None:
        """Raise an error for image sizes that a view, the network or the objective cannot have."""
        for epoch in range(self._epochs):
            self._loader.view(epoch).check_sizes([self._sizes.at(epoch)])
        for size in self._sizes.sizes[:-1]:
            self._trainable.check_size(size)

    def close(self) -> None:
        """Stop all threads."""
        self._loader.close()
        if self._journal is not None:
            self._journal.close()
        if self._evaluator is not None:
            self._evaluator.close()

    def train(self) -> TrainResult:
        """Train to the end, export the network, and return the result."""
        self._clock.start()
        self._report("training", self._state.step, self._steps)
        if self._state.unfinished is not None:  # stopped between a checkpoint and its evaluation
            self._close_epoch()
        while self._state.step < self._steps:
            self._train_epoch()
            self._finish_epoch()
        self._report("exporting", 0, 1)
        self._ranks.first(self._export)
        return self._result()

    def _export(self) -> None:
        """Export the network for timm, with its model card, and as ONNX if configured."""
        folder = Path(self._config.out) / _EXPORT
        network = converted(self._state.final_network)
        export_network(network, self._spec, folder, self._class_names)
        cfg: Any = network.pretrained_cfg
        write_card(
            folder,
            self._config,
            self._spec,
            architecture=cfg["architecture"],
            parameters=sum(p.numel() for p in network.parameters()),
            has_classes=bool(network.num_classes),
            steps=self._steps,
            evaluation=self._state.evaluation,
            cache=self._provenance,
        )
        if self._config.onnx:
            export_onnx(network, self._spec, folder / _ONNX)

    def _train_epoch(self) -> None:
        """Train to the end of the current epoch, or of the run."""
        state = self._state
        state.model.train()
        self._loader.set_size(self._sizes.at(state.epoch))
        left = self._loader.batches_of(state.epoch) - state.batch
        batches = self._loader.epoch(
            state.epoch, first_batch=state.batch, followed=state.step + left < self._steps
        )
        while state.step < self._steps:
            with self._clock.waiting():
                batch = next(batches, None)
            if batch is None:
                break
            if self._train_batch(*batch):
                # the last loss may not have been read yet: no checkpoint of weights that are NaN
                self._finite.check_last(state.epoch)
                state.save()
                raise Interrupted(
                    f"stopped at step {state.step} of {self._steps}; a checkpoint is written",
                    kept=True,
                    hint="continue with --resume",
                )
        batches.close()  # type: ignore[attr-defined]  # a generator; drops what it has read ahead

    def _train_batch(self, images: Tensor, targets: TargetBatch) -> bool:
        """Train on one batch and return whether to stop after it.

        Raises:
            NonFiniteLoss: The loss of this step or of the previous one is not finite.
        """
        state = self._state
        if self._answer is not None:
            targets = self._answer(images, targets)
        losses, outputs = self._gradient(state.model, images, targets, state.step / self._steps)
        finite = self._finite.see(state.step + 1, losses, outputs.logits)
        stop = self.should_stop is not None and self.should_stop()
        due = self._ranks.is_first and self._pace.is_due()
        # one exchange per step: all ranks take the same branches below, which contain collectives
        broken, stop, due = self._ranks.any(not finite, stop, due)
        if broken:
            raise self._finite.error(state.epoch)
        if self._config.optimizer.clip_grad is not None:
            self._accelerator.clip_grad_norm_(
                state.model.parameters(), self._config.optimizer.clip_grad
            )
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.count(losses)  # before the hooks, whose step number includes this step
        if self._hooks:
            self._hooks.on_step(
                Step(state.step, state.epoch, self._network, images, targets, outputs, losses)
            )
        self._clock.images += len(images) * self._ranks.count
        if due:
            self._report(
                "training", state.step, self._steps, float(self._ranks.total(losses["loss"]))
            )
        return stop

    def _finish_epoch(self) -> None:
        """Write a checkpoint, then evaluate, so that an error there loses no training."""
        state = self._state
        self._finite.check_last(state.epoch)
        self._hooks.on_epoch(state.epoch)
        # part of the checkpoint, so that a run that is stopped during evaluation can repeat it
        lr = max(float(group["lr"]) for group in state.optimizer.param_groups)
        state.unfinished = {"epoch": state.epoch, **state.means(), "lr": lr}
        if self._sizes.grows:
            state.unfinished["size"] = self._sizes.at(state.epoch)
        state.next_epoch()
        if state.step >= self._steps or state.epoch % self._config.checkpoint_every == 0:
            state.save()
        self._close_epoch()

    def _close_epoch(self) -> None:
        """Evaluate and log the epoch, unless an interrupted run has already done so."""
        state = self._state
        values = state.unfinished
        assert values is not None
        # only the first rank has the log, and all ranks have to evaluate if one does
        written = self._ranks.first(
            lambda: self._journal.epoch_at(state.step) if self._journal else None
        )
        last = state.step >= self._steps
        if self._evaluator is not None and (last or state.epoch % self._config.eval_every == 0):
            if written is not None and {"top1", "top5", "val_loss", "images"} <= written.keys():
                state.evaluation = Evaluation(
                    written["top1"], written["top5"], written["val_loss"], written["images"],
                    written.get("mean_average_precision"),
                )  # fmt: skip
            else:
                written = None
                self._ranks.share_buffers(state.final_network)
                state.evaluation = self._evaluator(state.final_network, self._report_evaluation)
                found = state.evaluation.to_json()
                values |= {"val_loss": found.pop("loss"), **found}
        if self._journal is not None and written is None:
            self._journal.epoch(state.step, {**values, **self._clock.rates()})
        state.unfinished = None

    def _report_evaluation(self, done: int, total: int) -> None:
        if self._pace.is_due():
            self._report("evaluating", done, total)

    def _report(self, phase: Any, done: int, total: int, loss: float | None = None) -> None:
        if self.on_progress is None:
            return
        state, rates = self._state, self._clock.rates()
        self.on_progress(
            TrainProgress(
                phase=phase,
                done=done,
                total=total,
                step=state.step,
                steps=self._steps,
                epoch=state.epoch,
                epochs=self._epochs,
                loss=loss,
                images_per_second=rates["images_per_second"],
                data_wait=rates["data_wait"],
                evaluation=state.evaluation,
                notes=tuple(self._notes),
            )
        )

    def _skipped(self, kind: str, names: list[str]) -> int:
        """Return the number of images that could not be decoded, and add a note with names."""
        every = sorted({name for own in self._ranks.gather(names) for name in own})
        if every:
            more = ", …" if len(every) > _NAMES else ""
            self._notes.append(
                f"{len(every)} {kind} images could not be decoded and were left out: "
                f"{', '.join(every[:_NAMES])}{more}"
            )
        return len(every)

    def _result(self) -> TrainResult:
        rows = self._loader.rows
        skipped = self._skipped(
            "training", [str(error.where) for error in self._loader.skipped.values()]
        )
        skipped_val = self._skipped(
            "validation", self._evaluator.skipped if self._evaluator else []
        )
        return TrainResult(
            out=self._config.out,
            evaluation=self._state.evaluation,
            steps=self._steps,
            images=images_in(self._loader, self._steps),
            set_images=len(rows),
            without_partner=without_partner(self._loader, self._state.epoch),
            labeled=rows.labeled,
            parameters=sum(p.numel() for p in converted(self._state.final_network).parameters()),
            seconds=self._clock.seconds,
            data_wait=self._clock.rates()["data_wait"],
            processes=self._ranks.count,
            skipped=skipped,
            skipped_val=skipped_val,
            unlisted=left_out_of(rows.source),
            unlisted_val=left_out_of(self._evaluator.source) if self._evaluator else {},
            notes=tuple(self._notes),
            **rows.counts(),
        )
