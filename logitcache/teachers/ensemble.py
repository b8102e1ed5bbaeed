"""Several teachers over the same decoded batch; their answers stay separate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.teachers.member import Member

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch
    from numpy.typing import NDArray

    from logitcache.teachers.member import Precision, TeacherConfig

__all__ = ["Ensemble"]


class Ensemble:
    """Teachers by name.

    Args:
        configs: By name.
        device: Where all of them run.
        precision: What all of them compute in.
    """

    def __init__(
        self,
        configs: Mapping[str, TeacherConfig],
        *,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.members = {
            name: Member(name, config, device=device, precision=precision)
            for name, config in configs.items()
        }

    @property
    def sizes(self) -> list[int]:
        """Sides in pixels that the members want to be fed, each once."""
        return sorted({member.input.size for member in self.members.values()})

    def answer(
        self,
        pixels: Mapping[int, NDArray[np.uint8]],
        batches: Mapping[str, int],
        names: Collection[str],
    ) -> dict[str, NDArray[np.float32]]:
        """Return raw logits (B, C) by name.

        Args:
            pixels: The rendered batch (B, 3, S, S) by side S.
            batches: Images of one forward, by name; a divisor of B.
            names: Who is asked.
        """
        answers = {}
        for name in names:
            member = self.members[name]
            images = pixels[member.input.size]
            step = batches[name]
            parts = [member.answer(images[i : i + step]) for i in range(0, len(images), step)]
            answers[name] = np.concatenate(parts)
        return answers
