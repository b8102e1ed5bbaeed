"""A student together with the parameters of its objective, as one module.

Parameters of the objective, such as projectors, are trained, saved and resumed with the network.
They are not part of the network that is averaged, evaluated and exported.

Shapes: B batch, C classes, S side of the images in pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from logitcache.batch import PIXELS, Features, Outputs, TargetBatch
from logitcache.errors import UsageError, first_of
from logitcache.networks.branches import branches_of
from logitcache.networks.forward import check_forward
from logitcache.networks.patch_drop import check_patch_drop, run_on_patches
from logitcache.networks.taps import TappedNetwork
from logitcache.students.vector_head import check_same_network, vector_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from logitcache.batch import VisiblePatches
    from logitcache.networks.taps import TapShape
    from logitcache.objectives.combine import WeightedSum
    from logitcache.students.build import StudentConfig
    from logitcache.targets.selection import Targets
    from logitcache.training.optimization.target_form import TargetForm

__all__ = ["TrainableStudent", "trained_part"]


def trained_part(
    network: nn.Module, config: StudentConfig, targets: Targets | None
) -> tuple[nn.Module, Tensor | None]:
    """Return what is trained: the network, or its classifier with an example of a cached vector.

    Args:
        network: The student.
        config: Its configuration.
        targets: Cached targets; None without a cache.

    Raises:
        UsageError: The vectors are those of another network, or do not fit the classifier.
    """
    if config.head_on is None or targets is None:
        return network, None
    example = targets.reader.features[config.head_on].values
    head = vector_head(network, config.head_on, example)
    teacher = targets.reader.lock_of(config.head_on)
    check_same_network(config, teacher.weights_sha256, headless=teacher.head == "none")
    return head, example


class TrainableStudent(nn.Module):
    """A network and the parameters of its objective.

    Args:
        network: Network from images (B, 3, S, S) to logits (B, C).
        objective: The objective; its parameters are created here.
        size: Side S of the images in pixels.
        features: Examples of one row of the teacher features that the objective needs, by
            ``<teacher>/<tap>``.
        example: An input of one row, for a network whose inputs are not images.

    Attributes:
        notes: Notes on parts of the network that are not trained.

    Raises:
        UsageError: The network lacks a layer of the objective, or its activations do not fit those
            of the teacher.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: WeightedSum,
        *,
        size: int,
        features: Mapping[str, Features],
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        taps = objective.needs.taps
        tapped = _tapped(network, taps, size, example)
        self.notes = _without_unused_branches(network, taps)
        self._input = example
        self._grids: tuple[int, ...] = ()
        self._shapes: dict[str, TapShape] = {} if tapped is None else tapped.shapes
        self.network: nn.Module = network if tapped is None else tapped
        self.objective = objective
        zeros = {tap: torch.zeros(1, *shape.shape) for tap, shape in self._shapes.items()}
        # before the optimizer is built, which has to know all parameters
        unlabeled = torch.full((1,), -1)
        self._example = TargetBatch(
            torch.zeros(1, dtype=torch.long), unlabeled, {}, features=features
        )
        classes = int(getattr(network, "num_classes", 0))
        logits_BC = torch.zeros(1, max(1, classes))
        objective.fit(self.outputs((logits_BC, zeros)), self._example_targets(size))

    def check_targets(self, form: TargetForm, classes: int, size: int) -> None:
        """Check that the terms on logits, and views that drop patches, fit the student.

        Args:
            form: What all batches of the run have in common.
            classes: Number of outputs of the student; 0 without a classifier.
            size: Side of the images in pixels.

        Raises:
            UsageError: A term needs other logits, other targets or views that drop patches, or the
                network cannot drop patches.
        """
        if self.objective.needs.dropped_patches and not form.grids:
            raise UsageError(
                "there are no dropped patches to reconstruct",
                where="objectives.reconstruct",
                expected="views that drop patches",
                got=f"views of all patches: {', '.join(form.views)}",
                hint="set views.patch_drop_rate, in precompute or, without a cache, in train",
            )
        self._grids = form.grids
        self._check_patches(size)
        rows = len(form.views)
        zeros = {tap: torch.zeros(rows, *shape.shape) for tap, shape in self._shapes.items()}
        outputs = self.outputs((torch.zeros(rows, classes), zeros))
        self.objective.check_logits(outputs, form.example(classes, self.objective.needs.parts))

    def _check_patches(self, size: int) -> None:
        for grid in self._grids:
            check_patch_drop(self._untapped, grid, size, "student")

    def forward(
        self, images_B3SS: Tensor, visible: VisiblePatches | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the logits and, if there are tapped layers, their activations.

        Args:
            images_B3SS: Normalized images.
            visible: Patches that the network is run on; None for all.
        """
        output: Tensor | tuple[Tensor, dict[str, Tensor]]
        if visible is None:
            output = self.network(images_B3SS)
        else:
            with run_on_patches(self._untapped, visible.indices, visible.grid, "student"):
                output = self.network(images_B3SS)
        return output

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen batch norms stay in evaluation mode, to keep their statistics."""
        super().train(mode)
        for module in self.modules():
            weights = list(module.parameters()) if isinstance(module, _BatchNorm) else []
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()
        return self

    def smallest_batch(self, size: int) -> int:
        """Return the smallest number of images of a training batch: 1, or 2 for some batch norms.

        A batch norm over maps of a single position, in the network or in a projector, needs two
        images to compute a variance.

        Args:
            size: Side of the images in pixels.
        """
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        was_training = self.training
        self.train()
        try:
            # the probe must not change the run: random numbers and statistics are put back
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                outputs = self.outputs(self(self._example_input(size)))
                self.objective.check(outputs, self._example_targets(size))
        except UsageError:  # of this size; check_size explains it
            return 1
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return 2
        finally:
            self.train(was_training)
            for name, buffer in self.named_buffers():
                buffer.copy_(buffers[name])
        return 1

    def _example_input(self, size: int) -> Tensor:
        return torch.zeros(1, 3, size, size) if self._input is None else self._input

    def _example_targets(self, size: int) -> TargetBatch:
        """Return targets of one row, with an image if the objective needs it."""
        if not self.objective.needs.pixels:
            return self._example
        pixels = Features(torch.zeros(1, 3, size, size), "NCHW", grid=size)
        features = {**self._example.features, PIXELS: pixels}
        return replace(self._example, features=features)

    def check_size(self, size: int) -> None:
        """Check that network and objective accept images of another size.

        Args:
            size: Side of the images in pixels.

        Raises:
            UsageError: The network has a fixed input size, or activations of this size do not fit
                the cached ones.
        """
        was_training = self.training
        self.eval()  # batch norm cannot learn from a batch of one
        try:
            self._check_patches(size)
            with torch.no_grad():
                outputs = self.outputs(self(torch.zeros(1, 3, size, size)))
                self.objective.check(outputs, self._example_targets(size))
        except UsageError as error:
            raise UsageError(
                error.what,
                where=f"{error.where}, at images of {size} pixels (size)",
                expected=error.expected,
                got=error.got,
                hint=error.hint,
            ) from None
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).split("\n")[0][:200]
            raise UsageError(
                "the student does not accept images of this size",
                where="size",
                expected="a network of any input size",
                got=f"{size} pixels: {reason}",
                hint="timm's vision transformers accept other sizes with "
                "--set student.kwargs.dynamic_img_size=true",
            ) from error
        finally:
            self.train(was_training)

    def outputs(
        self,
        output: Tensor | tuple[Tensor, dict[str, Tensor]],
        visible: VisiblePatches | None = None,
    ) -> Outputs:
        """Return the result of :meth:`forward` in the form that objectives take.

        Args:
            output: The result.
            visible: The patches that it is of; None for all.
        """
        if isinstance(output, Tensor):
            return Outputs(output)
        logits, activations = output
        features = {}
        for tap, values in activations.items():
            shape = self._shapes[tap]
            # a layer before the embeddings of positions has all patches
            dropped = visible is not None and values.shape[1:] != shape.shape
            features[tap] = Features(
                values,
                shape.layout,
                grid=visible.grid if visible and dropped else shape.grid_of(values),
                prefix_tokens=shape.prefix_tokens,
                positions=visible.indices if visible and dropped else None,
            )
        return Outputs(logits, features)

    @property
    def _untapped(self) -> Any:
        """The network of the user."""
        return self.network.network if self._shapes else self.network

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """Return the function from the name of a parameter to its layer, in the convention of timm.

        Parameters of the objective belong to the last layer.

        Args:
            coarse: Whether stages are layers instead of blocks.

        Raises:
            UsageError: The network has no layers for a decay of the learning rate.
        """
        network = self._untapped
        if not hasattr(network, "group_matcher"):
            raise UsageError(
                "this network does not define layers for a decay of the learning rate",
                where="optimizer.layer_decay",
                got=type(network).__name__,
                hint="remove layer_decay, or use a student with group_matcher, as timm's have",
            )
        layers = group_parameters(network, network.group_matcher(coarse=coarse), reverse=True)
        last, prefix = max(layers.values()), "network.network." if self._shapes else "network."
        return lambda name: (float(layers.get(name.removeprefix(prefix), last)),)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, in the convention of timm."""
        names = set()
        for prefix, module in self.named_modules():
            own: Any = getattr(module, "no_weight_decay", None)
            if module is not self and own is not None:
                names |= {f"{prefix}.{name}" for name in own()}
        return names

    def lr_scales(self) -> dict[str, float]:
        """Return the scales of the learning rate of parameters with another one, by name."""
        scales: dict[str, float] = {}
        for prefix, module in self.named_modules():
            own: Any = getattr(module, "lr_scales", None)
            if module is not self and own is not None:
                scales |= {f"{prefix}.{name}": scale for name, scale in own().items()}
        return scales


def _tapped(
    network: nn.Module, taps: Sequence[str], size: int, example: Tensor | None
) -> TappedNetwork | None:
    """Return the network with the layers of the objective; None if it needs none.

    Either way it is run once, so that arguments that do not fit are found before the first step.
    """
    try:
        if not taps:
            check_forward(network, size, example)
            return None
        return TappedNetwork(network, taps, size=size, example=example)
    except UsageError as error:
        error.where = error.where or ("objectives, layers of the student" if taps else "student")
        raise


def _without_unused_branches(network: nn.Module, taps: Sequence[str]) -> list[str]:
    """Freeze the network's own branches that no objective uses: they would have no gradient.

    Returns:
        A note on them, if there are any.

    Raises:
        UsageError: A branch was added for training, and no objective uses it.
    """
    unused = {name: found for name, found in branches_of(network).items() if name not in taps}
    for name, branch in unused.items():
        if not branch.own:
            raise UsageError(
                "no objective uses a branch of the student",
                where="objectives",
                expected=f"a term with head: {name}",
                hint="add such a term, or remove the branch",
            )
        branch.requires_grad_(False)
    if not unused:
        return []
    shown = first_of(list(unused))
    return [f"no objective uses these branches, whose weights stay as they are: {shown}"]
