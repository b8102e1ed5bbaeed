"""Heads that are trained on cached vectors, without images and without the network before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from logitcache.errors import UsageError
from logitcache.networks.build import build_network, classifier_of
from logitcache.networks.digest import weights_digest

if TYPE_CHECKING:
    from logitcache.students.build import StudentConfig

__all__ = ["check_same_network", "vector_head"]


def vector_head(network: nn.Module, name: str, example: torch.Tensor) -> nn.Module:
    """Return the classifier of a network, whose input are the cached vectors.

    Args:
        network: The student.
        name: Name of the cached vectors, ``<teacher>/<tap>``.
        example: Cached activations of one row, (1, D) if they are vectors.

    Raises:
        UsageError: They are no vectors, the network has several classifiers, or one of other
            inputs.
    """
    found = classifier_of(network)
    hint = "cache the input of the classifier: --feature TEACHER=pre_logits"
    if not isinstance(found, nn.Module):
        raise UsageError(
            "only a network with a single classifier can be trained on cached vectors",
            where="student.head_on",
            got="several classifiers",
            hint="choose another network",
        )
    if example.ndim != 2:
        raise UsageError(
            "a classifier is trained on vectors, but these features are maps or tokens",
            where=f"student.head_on: {name}",
            expected="one vector for each image",
            got=f"rows of shape {tuple(example.shape[1:])}",
            hint=hint,
        )
    try:
        with torch.no_grad():
            found.eval()(example)
    except RuntimeError:
        raise UsageError(
            "the cached vectors have another length than the input of the classifier",
            where=f"student.head_on: {name}",
            got=f"{example.shape[1]} numbers",
            hint=hint,
        ) from None
    return found


def check_same_network(config: StudentConfig, digest: str, *, headless: bool) -> None:
    """Check that a student is the teacher whose vectors it is trained on, by its weights.

    Args:
        config: Configuration of the student.
        digest: Digest of the teacher's weights in the cache.
        headless: Whether the cache has features of the teacher alone, so that it had no classifier.

    Raises:
        UsageError: The weights are others.
    """
    teacher = build_network(config, 0 if headless else None)
    found = weights_digest(teacher)
    if found != digest:
        raise UsageError(
            "the student has other weights than the teacher of the cached vectors, so its "
            "classifier would be trained on the vectors of another network",
            where=f"student.head_on: {config.head_on}",
            expected=f"weights with the sha256 {digest[:16]}",
            got=f"{config.model}: {found[:16]}",
            hint="give the network that the cache was computed with (student.model and weights)",
        )
