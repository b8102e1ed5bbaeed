"""A residual adapter before a frozen classifier, and networks whose classifier has one.

Source: Peng et al., "SgVA-CLIP: Semantic-Guided Visual Adapting of Vision-Language Models for
Few-Shot Image Classification", IEEE Transactions on Multimedia 2023; the adapter is that of its
code, and the classifier over unit vectors that of CLIP, whose rows are text embeddings.

Shapes: B batch, D channels, C classes, S side of the images in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, get_model_args, register_model
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AdaptedNetwork", "Adapter", "AdapterHead", "TableClassifier", "adapted"]

_ADAPTED = "adapted_classifier"


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


class AdaptedNetwork(nn.Module):
    """A network of timm whose classifier is an :class:`AdapterHead`, with the interface of timm's.

    Args:
        trunk: Name of the network in timm.
        trunk_args: Its arguments.
        classifier: Name of the module in it that is replaced.
        hidden: Number of channels of the adapter's hidden layer.
        table: Whether the classifier is one over unit vectors.
        num_classes: C.
        in_chans: Channels of the images.
    """

    def __init__(
        self,
        trunk: str = "resnet10t",
        trunk_args: Mapping[str, Any] | None = None,
        classifier: str = "fc",
        hidden: int = 1,
        table: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        network = timm.create_model(
            trunk, num_classes=num_classes, in_chans=in_chans, **dict(trunk_args or {})
        )
        last: Any = network.get_submodule(classifier)
        head = TableClassifier(torch.zeros_like(last.weight), 1.0) if table else last
        network.set_submodule(classifier, AdapterHead(Adapter(last.in_features, hidden), head))
        self.trunk: Any = network
        self.num_classes = num_classes
        self.num_features: int = network.num_features  # type: ignore[assignment]  # timm's own

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Map images (B, 3, S, S) to logits (B, C)."""
        logits_BC: Tensor = self.trunk(images_B3SS)
        return logits_BC

    def forward_features(self, images_B3SS: Tensor) -> Tensor:
        """Map images to the features before pooling."""
        features: Tensor = self.trunk.forward_features(images_B3SS)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits (B, C), or to vectors (B, D) if ``pre_logits``."""
        found: Tensor = self.trunk.forward_head(features, pre_logits=pre_logits)
        return found

    def get_classifier(self) -> nn.Module:
        """Return the adapter with its classifier."""
        found: nn.Module = self.trunk.get_classifier()
        return found

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace adapter and classifier by a new linear layer for ``num_classes`` classes."""
        self.num_classes = num_classes
        self.trunk.reset_classifier(num_classes, global_pool)


def adapted(network: nn.Module) -> nn.Module:
    """Return a network with an adapter as one that timm can build and load.

    Args:
        network: A network of timm, whose classifier may be an :class:`AdapterHead`; other networks
            are returned unchanged.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, AdapterHead)]
    if not names or isinstance(network, AdaptedNetwork):
        return network
    (name,) = names
    cfg: Any = network.pretrained_cfg
    head: Any = network.get_submodule(name)
    arguments = {**get_model_args(network)}
    found: nn.Module = timm.create_model(
        _ADAPTED,
        num_classes=arguments.pop("num_classes"),
        in_chans=arguments.pop("in_chans"),
        trunk=cfg["architecture"],
        trunk_args=arguments,
        classifier=name,
        hidden=head.adapter.linear1.out_features,
        table=isinstance(head.classifier, TableClassifier),
    )
    found.load_state_dict({f"trunk.{key}": value for key, value in network.state_dict().items()})
    return found.train(network.training)


default_cfgs = generate_default_cfgs(
    {
        f"{_ADAPTED}.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "crop_pct": 0.95,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": (),
            "classifier": "trunk.fc.classifier",
            "paper_ids": "arXiv:2211.16191",
        }
    }
)


@register_model
def adapted_classifier(
    pretrained: bool = False, classifier: str = "fc", **kwargs: Any
) -> nn.Module:
    """A network of timm with an adapter before its classifier."""
    overlay = {**(kwargs.pop("pretrained_cfg_overlay", None) or {})}
    network: nn.Module = build_model_with_cfg(
        AdaptedNetwork,
        _ADAPTED,
        pretrained,
        pretrained_cfg_overlay={"classifier": f"trunk.{classifier}.classifier", **overlay},
        classifier=classifier,
        **kwargs,
    )
    return network
