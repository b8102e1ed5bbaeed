"""Ensembles: several teachers on the same decoded batch, with separate outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from logitcache.teachers.forward_clock import ForwardClock
from logitcache.teachers.member import KeptTap, Member, on_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.encoding.features import FeatureEncoding
    from logitcache.teachers.member import Pending, Precision, TeacherConfig
    from logitcache.views.tokens import ShownPatches

__all__ = ["Ensemble", "Tap"]


@dataclass(frozen=True)
class Tap:
    """A teacher layer whose features are cached.

    Attributes:
        teacher: Name of the teacher.
        tap: Name of the layer.
        encoding: Encoding of its features.
    """

    teacher: str
    tap: str
    encoding: FeatureEncoding


class Ensemble:
    """Several teachers that are run on the same images.

    Args:
        configs: Configuration of each teacher, by name.
        device: Device of all teachers.
        precision: Floating-point type of all forward passes.
        class_names: Names of the classes of the data in order; empty without labels.

    Attributes:
        members: The teachers by name.
        clock: Clock of all forward passes; replaced where another sum begins.
    """

    def __init__(
        self,
        configs: Mapping[str, TeacherConfig],
        *,
        device: torch.device,
        precision: Precision,
        class_names: Sequence[str] = (),
    ) -> None:
        self.members = {
            name: Member(name, config, device=device, precision=precision, class_names=class_names)
            for name, config in configs.items()
        }
        self._taps: dict[str, Tap] = {}
        self._device = device
        self.clock = ForwardClock(device)

    @property
    def sizes(self) -> list[int]:
        """Distinct input sizes of the members, as sides in pixels."""
        return sorted({member.input.size for member in self.members.values()})

    @property
    def with_logits(self) -> list[str]:
        """Names of the members whose logits are cached."""
        return [name for name, member in self.members.items() if member.has_logits]

    def keep(self, taps: Mapping[str, Tap]) -> None:
        """Set the layers whose features are computed.

        Args:
            taps: Layers, by the names that :meth:`run` uses.
        """
        self._taps = dict(taps)

    def run(
        self,
        pixels: Mapping[int, NDArray[np.uint8]],
        batches: Mapping[str, int],
        kept_patches: Mapping[str, NDArray[np.int64] | None],
        shown: ShownPatches | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Return logits (B, C) and features (B, ...) by name, from one forward pass per member.

        The arguments are those of :meth:`start`.
        """
        started = self.start(pixels, batches, kept_patches, shown)
        return {name: wait() for name, wait in started.items()}

    def start(
        self,
        pixels: Mapping[int, NDArray[np.uint8]],
        batches: Mapping[str, int],
        kept_patches: Mapping[str, NDArray[np.int64] | None],
        shown: ShownPatches | None = None,
    ) -> dict[str, Pending]:
        """Start one forward pass per member; return functions that wait for outputs, by name.

        The outputs are logits (B, C) and features (B, ...). A CUDA device has the forward passes of
        all members in its queue before any of them is waited for.

        Args:
            pixels: Rendered batch (B, 3, S, S) by side S.
            batches: Images per forward pass by name, a divisor of B; the same for a member and its
                layers.
            kept_patches: Names of members, and names given to :meth:`keep`, with the indices of the
                patches of each row to cache, int64 (B, n), None for all.
            shown: Patches of each row that the networks are run on; None for all.
        """
        outputs: dict[str, Pending] = {}
        moved: dict[int, Tensor] = {}  # members with inputs of one size share one copy
        for teacher in dict.fromkeys(self._teacher_of(name) for name in kept_patches):
            names = [name for name in kept_patches if self._teacher_of(name) == teacher]
            taps = {name: self._taps[name] for name in names if name != teacher}
            side = self.members[teacher].input.size
            if side not in moved:
                moved[side] = on_device(pixels[side], self._device)
            images = moved[side]
            step = batches[names[0]]
            with self.clock.measure(teacher, len(images)):
                parts = [
                    self._started(
                        teacher, images, slice(start, start + step), taps, kept_patches, shown
                    )
                    for start in range(0, len(images), step)
                ]
            outputs |= {name: partial(_joined, [part[name] for part in parts]) for name in names}
        return outputs

    def _started(
        self,
        teacher: str,
        images: Tensor,
        rows: slice,
        taps: Mapping[str, Tap],
        kept_patches: Mapping[str, NDArray[np.int64] | None],
        shown: ShownPatches | None,
    ) -> dict[str, Pending]:
        """Start one forward pass of one member; return its logits and features by name."""
        kept = {}
        for name, tap in taps.items():
            positions = kept_patches[name]
            kept[tap.tap] = KeptTap(tap.encoding, None if positions is None else positions[rows])
        patches = None if shown is None else shown.take(rows)
        logits, features = self.members[teacher].start(images[rows], kept, patches)
        return {teacher: logits, **{name: features[tap.tap] for name, tap in taps.items()}}

    def _teacher_of(self, name: str) -> str:
        return self._taps[name].teacher if name in self._taps else name


def _joined(parts: Sequence[Pending]) -> NDArray[np.float32]:
    return np.concatenate([wait() for wait in parts])
