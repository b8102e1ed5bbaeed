"""A residual adapter before a frozen classifier, and networks whose classifier has one.

Source: Peng et al., "SgVA-CLIP: Semantic-Guided Visual Adapting of Vision-Language Models for
Few-Shot Image Classification", IEEE Transactions on Multimedia 2023; the adapter is that of its
code, and the classifier over unit vectors that of CLIP, whose rows are text embeddings.

Shapes: B batch, D channels, C classes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, get_model_args, register_model
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Adapter", "AdapterHead", "TableClassifier", "adapted"]

_MODEL = "adapted_classifier"


class Adapter(nn.Module):
    """A residual adapter of vectors.

    ::

        f' = relu(a W2 relu(W1 f) + (1 - a) f)

    without biases; the share a is learned.

    Args:
        channels: D.
        hidden: Number of channels of the hidden layer.
        share: Share a at the beginning.
    """

    def __init__(self, channels: int, hidden: int, share: float = 0.5) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, channels, bias=False)
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, vectors_BD: Tensor) -> Tensor:
        """Map vectors (B, D) to adapted ones (B, D)."""
        changed_BD = self.linear2(functional.relu(self.linear1(vectors_BD)))
        return functional.relu(self.share * changed_BD + (1 - self.share) * vectors_BD)


class TableClassifier(nn.Module):
    """A frozen classifier over unit vectors, with one vector for each class.

    ::

        z_c = scale (f / |f|) . t_c

    Args:
        table_CD: Vector t of each class.
        scale: Factor of the logits; 100 in CLIP.
    """

    def __init__(self, table_CD: Tensor, scale: float) -> None:
        super().__init__()
        self.out_features, self.in_features = table_CD.shape
        self.weight = nn.Parameter(table_CD, requires_grad=False)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, vectors_BD: Tensor) -> Tensor:
        """Map vectors (B, D) to logits (B, C)."""
        scale: Any = self.scale
        logits_BC: Tensor = scale * functional.linear(functional.normalize(vectors_BD), self.weight)
        return logits_BC


class AdapterHead(nn.Module):
    """An adapter and the classifier behind it, in place of the classifier of a network.

    Args:
        adapter: The adapter.
        classifier: The classifier, linear or with a table.
    """

    def __init__(self, adapter: Adapter, classifier: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter
        self.classifier = classifier

    def forward(self, vectors_BD: Tensor) -> Tensor:
        """Map vectors (B, D) to logits (B, C)."""
        logits_BC: Tensor = self.classifier(self.adapter(vectors_BD))
        return logits_BC

    def get_classifier(self) -> nn.Module:
        """Return the classifier, whose input are adapted vectors."""
        return self.classifier


def adapted(network: nn.Module) -> nn.Module:
    """Let the exports of a network with an adapter be of a model that timm can build and load.

    Args:
        network: A network of timm, whose classifier may be an :class:`AdapterHead`; others are left
            as they are.

    Returns:
        The network, whose architecture is ``adapted_classifier``.
    """
    attributes: Any = network
    names = [name for name, module in network.named_modules() if isinstance(module, AdapterHead)]
    if not names or attributes.pretrained_cfg["architecture"] == _MODEL:
        return network
    (name,) = names
    head: Any = network.get_submodule(name)
    arguments = get_model_args(network)
    attributes._model_args = {
        **{name: arguments.pop(name) for name in ("num_classes", "in_chans")},
        "trunk": attributes.pretrained_cfg["architecture"],
        "trunk_args": arguments,
        "classifier": name,
        "hidden": head.adapter.linear1.out_features,
        "table": isinstance(head.classifier, TableClassifier),
    }
    attributes.pretrained_cfg["architecture"] = _MODEL
    return network


default_cfgs = generate_default_cfgs({f"{_MODEL}.untrained": {"url": "", "num_classes": 1000}})


def _adapted(
    trunk: str,
    trunk_args: Mapping[str, Any],
    classifier: str,
    hidden: int,
    table: bool,
    **kwargs: Any,
) -> nn.Module:
    # only registered names: the arguments of an export may come from anybody
    if not timm.is_model(trunk) or trunk == _MODEL:
        raise ValueError(f"{trunk!r} is not a model of timm")
    network: nn.Module = timm.create_model(trunk, **{**kwargs, **trunk_args})
    last: Any = network.get_submodule(classifier)
    head = TableClassifier(torch.zeros_like(last.weight), 1.0) if table else last
    network.set_submodule(classifier, AdapterHead(Adapter(last.in_features, hidden), head))
    return network


@register_model
def adapted_classifier(
    pretrained: bool = False,
    *,
    trunk: str = "resnet18",
    trunk_args: Mapping[str, Any] | None = None,
    classifier: str = "fc",
    hidden: int = 1024,
    table: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Any network of timm with an adapter before its classifier, which may be a table."""
    network: nn.Module = build_model_with_cfg(
        partial(_adapted, trunk, trunk_args or {}, classifier, hidden, table),
        _MODEL,
        pretrained,
        **kwargs,
    )
    return network
