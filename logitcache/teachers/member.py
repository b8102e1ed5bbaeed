"""A teacher: a frozen network with its own input size, normalization and classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from logitcache.encoding.feature_choice import FeatureConfig
from logitcache.errors import NetworkError, UsageError
from logitcache.networks.build import (
    InputSpec,
    NetworkConfig,
    architecture,
    build_network,
    check_model_name,
    class_names_of,
    input_spec,
    num_classes_of,
    size_is_known,
)
from logitcache.networks.digest import weights_digest
from logitcache.networks.patch_drop import check_patch_drop, run_on_patches
from logitcache.networks.taps import TappedNetwork, tap_shapes
from logitcache.teachers.class_map import ClassMapChoice, choose_class_map, own_class_names
from logitcache.teachers.reduce import reduced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.encoding.features import FeatureEncoding
    from logitcache.networks.taps import TapShape
    from logitcache.views.tokens import ShownPatches

__all__ = ["Head", "KeptTap", "Member", "Pending", "Precision", "TeacherConfig", "on_device"]

Head = Literal["softmax", "sigmoid", "none"]
Precision = Literal["float32", "bfloat16", "float16"]
Pending = Callable[[], "NDArray[np.float32]"]
"""Function that waits for an output of a network and returns it, from any thread."""


class TeacherConfig(NetworkConfig):
    """Configuration of a teacher: a network and its label space.

    Attributes:
        head: ``softmax``; ``sigmoid`` for a network that was trained with a binary loss for each
            class, whose logits are log-odds and stored dense; or ``none`` for a backbone without
            classes: its features are cached, and no logits. A classifier in the weights is left
            out.
        class_map: Output of the teacher for each class of the data; logits are restricted to these
            outputs before they are normalized. By default classes are mapped by name if the network
            has class names; ``position`` if the outputs are in the order of the data's classes;
            ``own`` to store all outputs with the names of the teacher's own classes, which the
            ``class_map`` of a training run maps to those of the student.
        class_names: Names of the outputs in order for ``class_map: own``, or the name of one of
            timm's lists, such as ``imagenet-1k``; by default those of the weights.
        features: Layers of the network whose features are cached, and their encodings; names as in
            :mod:`logitcache.networks.taps`.
        class_embeddings: Whether the weight matrix of the classifier is cached, too: one embedding
            per class, the same for all images.
        channels_last: Whether convolutions run in this memory format; faster if the device has
            kernels for it. Part of the lock, since it may change outputs in their last bits.
        compile: Whether the network is compiled by ``torch.compile``; part of the lock, too.
    """

    head: Head = "softmax"
    class_map: Annotated[tuple[int, ...], Field(min_length=2)] | ClassMapChoice | None = None
    class_names: Annotated[tuple[str, ...], Field(min_length=2)] | str | None = None
    features: dict[str, FeatureConfig] = Field(default_factory=dict)
    class_embeddings: bool = False
    channels_last: bool = False
    compile: bool = False

    @model_validator(mode="after")
    def _hooks_are_called(self) -> Self:
        if self.compile and self.features:
            raise ValueError("features cannot be captured from a compiled network: remove compile")
        return self

    @model_validator(mode="after")
    def _headless(self) -> Self:
        if self.head != "none":
            return self
        classes = ("class_map", "class_names", "class_embeddings")
        given = [name for name in classes if getattr(self, name)]
        if given:
            raise ValueError(f"a teacher with head: none has no classes: remove {given[0]}")
        return self

    @model_validator(mode="after")
    def _names_are_used(self) -> Self:
        if self.class_names is not None and self.class_map != "own":
            raise ValueError("class_names are stored with class_map: own only: set it")
        return self

    @property
    def execution(self) -> dict[str, bool]:
        """Execution options that are switched on, as the lock records them."""
        how = {"channels_last": self.channels_last, "compile": self.compile}
        return {name: True for name, on in how.items() if on}


@dataclass(frozen=True)
class KeptTap:
    """Features of a layer to return for one batch.

    Attributes:
        encoding: Encoding of the features, which defines their reduction.
        positions: Indices of the patches of each row, int64 (B, n); None for all patches.
    """

    encoding: FeatureEncoding
    positions: NDArray[np.int64] | None = None


class Member:
    """A teacher, ready to run.

    Args:
        name: Name of the teacher in the cache.
        config: Configuration of the teacher.
        device: Device of the network.
        precision: ``float32``, or the type that autocast computes in.
        class_names: Names of the classes of the data in order; empty without labels.

    Attributes:
        name: Name of the teacher in the cache.
        head: Head of its configuration.
        has_logits: Whether its logits are cached; otherwise they have no columns.
        input: Input size and normalization of the network.
        size_is_known: Whether the input size comes from the weights or the user; otherwise it is
            the default of the model.
        class_names: Names of its own classes if it is stored with all of them, or else None.
        source: Origin of the weights, for messages.
        notes: Notes for the user: how the classes were mapped, and how a program is run.

    Raises:
        NetworkError: The network has no weights, or they do not fit.
        UsageError: There is no such model, or the network lacks classes of the data or of the map.
    """

    def __init__(
        self,
        name: str,
        config: TeacherConfig,
        *,
        device: torch.device,
        precision: Precision,
        class_names: Sequence[str] = (),
    ) -> None:
        check_model_name(config.model)
        if not config.is_trained:
            raise NetworkError(
                f"teacher {name!r} has no trained weights",
                where=config.model,
                hint=f"give a file or 'pretrained': --teacher {name}={config.model}@WEIGHTS, "
                f"or an exported network: --teacher {name}=local-dir:FOLDER",
            )
        self.name = name
        self.head = config.head
        self.has_logits = config.head != "none"
        network = build_network(config, None if self.has_logits else 0)
        self.input: InputSpec = input_spec(network, config.size)
        self._outputs = num_classes_of(network)
        self.size_is_known = size_is_known(network, config)
        class_map: list[int] | None = None
        self.notes: list[str] = []
        if self.has_logits:
            class_map, self.notes = choose_class_map(
                name, config.class_map, class_names, class_names_of(network), self._outputs
            )
        self.class_names: tuple[str, ...] | None = None
        if config.class_map == "own":
            self.class_names = own_class_names(
                name, config.class_names, class_names_of(network), self._outputs
            )
        fixed = getattr(network, "fixed_batch", None)
        if fixed is not None:
            self.notes.append(
                f"teacher {name}: its program was exported for batches of {fixed} images; other "
                "batches are run in parts of this size, padded with black images"
            )
        self._class_map = None if class_map is None else torch.tensor(class_map)
        lock = {
            **architecture(network, config),
            "weights_sha256": weights_digest(network),
            "outputs": self._outputs,
            "input": {n: v for n, v in self.input.to_json().items() if n != "crop_mode"},
            "precision": precision,
            "class_map": class_map,
            **config.execution,
            **({} if config.head == "softmax" else {"head": config.head}),
        }
        self._lock: dict[str, Any] = json.loads(json.dumps(lock))  # compared with JSON
        self.source = config.weights or config.model
        self._device = device
        self._precision = precision
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        self._network = network.eval().requires_grad_(False).to(device)
        self._network.to(memory_format=self._format)
        self._run = torch.compile(self._network) if config.compile else self._network
        self._tapped: dict[tuple[str, ...], TappedNetwork] = {}
        mean, std = torch.tensor(self.input.mean), torch.tensor(self.input.std)
        self._mean_C11 = (255.0 * mean).view(-1, 1, 1).to(device)
        self._std_C11 = (255.0 * std).view(-1, 1, 1).to(device)

    @property
    def num_classes(self) -> int:
        """Number of classes of the outputs, after the class map; 0 without logits."""
        return self._outputs if self._class_map is None else len(self._class_map)

    @property
    def lock(self) -> dict[str, Any]:
        """Everything that determines the outputs; a resumed run must have the same lock."""
        return self._lock

    def class_embeddings(self) -> NDArray[np.float32]:
        """Return the weights of the classifier, float32 (C, E), one row per class of the cache.

        Raises:
            UsageError: The classifier is not one layer with a row of weights for each output.
        """
        classifier = getattr(self._network, "get_classifier", lambda: None)()
        weight = getattr(classifier, "weight", None)
        if weight is None or weight.flatten(1).shape[0] != self._outputs:
            raise UsageError(
                "the network has no classifier with a single weight matrix",
                where=f"teachers.{self.name}.class_embeddings",
                expected=f"one layer with {self._outputs} outputs",
                got=type(classifier).__name__,
                hint="remove class_embeddings, or choose another network",
            )
        rows = weight.detach().flatten(1).float().cpu()
        values: NDArray[np.float32] = rows.numpy()
        return values if self._class_map is None else values[self._class_map.numpy()]

    def tap_shapes(self, taps: Iterable[str]) -> dict[str, TapShape]:
        """Return the layouts and shapes of the activations of layers.

        Raises:
            UsageError: There is no such layer.
        """
        return tap_shapes(self._network, taps, self.input.size)

    def check_patch_drop(self, grid: int) -> None:
        """Check that the network can be run on some of the patches of a grid.

        Raises:
            UsageError: It cannot, or it has another grid of patches.
        """
        check_patch_drop(self._network, grid, self.input.size, f"teacher {self.name!r}")

    def run(self, pixels_B3SS: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return raw logits (B, C) for RGB pixels in uint8.

        Args:
            pixels_B3SS: A batch of images with the size of :attr:`input`.
        """
        return self.start(pixels_B3SS, {})[0]()

    @torch.inference_mode()
    def start(
        self,
        pixels_B3SS: NDArray[np.uint8] | Tensor,
        taps: Mapping[str, KeptTap],
        shown: ShownPatches | None = None,
    ) -> tuple[Pending, dict[str, Pending]]:
        """Start a forward pass; return its raw logits (B, C), and features of layers.

        A processor computes them at once. On a CUDA device they are queued: other work can be
        queued behind them before the returned functions are called. Without logits, C is 0.

        Args:
            pixels_B3SS: A batch of images with the size of :attr:`input`, uint8; not copied if it
                is on the device already.
            taps: Features to return, by name of the layer.
            shown: Patches that the network is run on; None for all.
        """
        images = on_device(pixels_B3SS, self._device)
        # normalized on the device, in float32 before autocast
        normalized = (images.float() - self._mean_C11) / self._std_C11
        normalized = normalized.contiguous(memory_format=self._format)
        half = self._precision != "float32"
        dtype = getattr(torch, self._precision) if half else torch.bfloat16
        run = self._runner(tuple(taps))  # not below: it may run the network on an image of its own
        half_precision = torch.autocast(self._device.type, dtype=dtype, enabled=half)
        with half_precision, self._on_patches(shown):
            logits, caught = run(normalized)
        kept = {tap: self._kept(tap, caught[tap], taps) for tap in taps}
        if not self.has_logits:
            return _pending(images.new_empty((len(images), 0), dtype=torch.float32)), kept
        logits = logits.float()
        if self._class_map is not None:
            logits = logits[:, self._class_map.to(logits.device)]
        return _pending(logits), kept

    def _runner(
        self, taps: tuple[str, ...]
    ) -> Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]:
        """Return the function from images to logits and activations of layers."""
        if not taps:
            return lambda images: (self._run(images), {})
        if taps not in self._tapped:
            self._tapped[taps] = TappedNetwork(
                self._network, taps, size=self.input.size, stop=not self.has_logits
            )
        return self._tapped[taps]

    def _on_patches(self, shown: ShownPatches | None) -> AbstractContextManager[None]:
        if shown is None:
            return nullcontext()
        indices = torch.from_numpy(shown.indices).to(self._device)
        return run_on_patches(self._network, indices, shown.grid)

    def _kept(self, tap: str, values: Tensor, taps: Mapping[str, KeptTap]) -> Pending:
        wanted = taps[tap]
        positions = wanted.positions
        index = None if positions is None else torch.from_numpy(positions).to(self._device)
        shape = self._tapped[tuple(taps)].shapes[tap]
        kept = reduced(values, shape, wanted.encoding, index)
        if wanted.encoding.kept is not None and kept.shape[1:] != wanted.encoding.shape:
            raise UsageError(
                "this layer returns other shapes where patches are dropped",
                where=f"teacher {self.name!r}, tap {tap!r}",
                expected=f"rows of shape {wanted.encoding.shape}",
                got=f"rows of shape {tuple(kept.shape[1:])}",
                hint="choose a block of the network, or set patch_drop_rate: 0",
            )
        return _pending(kept)


def on_device(pixels_B3SS: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Return pixels on a device, uint8 as they are; a copy to a CUDA device is queued."""
    if isinstance(pixels_B3SS, torch.Tensor):
        return pixels_B3SS.to(device)
    images = torch.from_numpy(pixels_B3SS)
    if device.type == "cuda":
        images = images.pin_memory()  # a copy from other memory blocks this thread
    return images.to(device, non_blocking=True)


def _pending(values: Tensor) -> Pending:
    """Start the copy of a float32 tensor to host memory; return the function that waits for it."""
    host = values.to("cpu", non_blocking=True)  # into pinned memory if it comes from a CUDA device
    if values.device.type != "cuda":
        return host.numpy
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch annotates its fields only
    copied.record(torch.cuda.current_stream(values.device))

    def wait() -> NDArray[np.float32]:
        copied.synchronize()
        return host.numpy()

    return wait
