"""A linear probe: how good what a network holds is, told by a fresh classifier on top of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["make_fingerprint"]


def make_fingerprint(network: nn.Module) -> None:
    """Freeze a network and give it a fresh classifier, in place.

    Raises:
        UsageError: It has several classifiers.
    """
    reset: Callable[[int], None] = network.reset_classifier  # type: ignore[assignment]  # timm's
    get: Callable[[], object] = network.get_classifier  # type: ignore[assignment]  # timm's
    network.requires_grad_(False)
    if isinstance(get(), nn.Module):
        reset(int(network.num_classes))  # type: ignore[arg-type]  # a module's attributes are untyped
    classifier = get()
    if not isinstance(classifier, nn.Module):
        raise UsageError(
            "this network has several classifiers, so no single probe",
            where="student.surgery.probe",
            hint="take a network with one",
        )
    classifier.requires_grad_(True)
