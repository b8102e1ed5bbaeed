"""The protocol of an image source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Source", "is_compared_with", "left_out_of", "notes_of"]


class Source(Protocol):
    """A finite, random-access set of images.

    Contract: everything is fixed at construction; :meth:`read` is thread-safe, returns the same
    value for the same index every time and never another image's; instances can be pickled.

    Four more attributes are optional: ``label_sets``, the :class:`.LabelSets` of images that may
    have several classes, whose ``labels`` are all -1; ``left_out``, the numbers of files that are
    not among the images, by reason; ``notes`` for the user about the classes; and
    ``compared_with``, the cache with whose digests :meth:`read` compares every image.
    """

    @property
    def description(self) -> str:
        """Description of the image set, for messages and for the manifest of a cache."""
        ...

    @property
    def keys(self) -> Sequence[str]:
        """The stable name of every image, NFC and POSIX; unique."""
        ...

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Size of every image in bytes, (N,); -1 where it is not known before it is read."""
        ...

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class of every image, (N,); -1 without one."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes in order of their number; empty without labels."""
        ...

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return the encoded bytes of one image, or its pixels (H, W) or (H, W, 3) in uint8."""
        ...


def left_out_of(source: Source) -> dict[str, int]:
    """Return the numbers of files that a source does not list, by reason; empty if not known."""
    return dict(getattr(source, "left_out", {}))


def is_compared_with(source: Source, cache: object) -> bool:
    """Return whether a source itself compares every image with its digest in an open cache."""
    return getattr(source, "compared_with", None) is cache


def notes_of(source: Source) -> list[str]:
    """Return notes for the user on how a source was listed."""
    return list(getattr(source, "notes", ()))
