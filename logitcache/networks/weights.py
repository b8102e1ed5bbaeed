"""Matching of the tensors of a weights file with the parameters of a network.

Files name the same weights differently: under a key of a training checkpoint, under the attribute
of a Lightning module, after the prefixes of DistributedDataParallel and ``torch.compile``. The
prefix is the one under which the file has most of the network's own names. Other layouts of names
are translated by the function ``checkpoint_filter_fn`` of the module that defines the model, as in
timm.

The file has to contain all tensors of the network with their shapes; only the classifier may be
missing or of another size. A network is never loaded in part.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from logitcache.errors import NetworkError
from logitcache.networks.weights_file import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

    from torch import nn

    from logitcache.networks.weights_file import Checkpoint

__all__ = [
    "COUNTERS",
    "MANY_CLASSES",
    "FittedWeights",
    "Layout",
    "filters_of",
    "fit_weights",
    "listed",
    "named_root",
]

MANY_CLASSES = 7919
"""Number of classes of the network of a layout; no layer has any other axis of this size."""

COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Counters of batch norm and of the profiler thop, which a file may lack or have in addition."""

_TRAINING_ONLY = ("AuxLogits.",)
"""A second classifier of Inception v3, which its forward pass for evaluation does not use."""

_POSITIONS = ("pos_embed", "rel_pos", "relative_position")
"""Parts of the names of tensors that depend on the size of the images."""

_MOST_PREFIXES = 8
_SHOWN = 5

_FOREIGN = {
    "encoder.layers.encoder_layer_0.": "a vision transformer of torchvision",
    "features.0.": "a MobileNet, EfficientNet, ConvNeXt, Swin or VGG of torchvision",
    "embeddings.patch_embeddings.": "a vision transformer of Transformers",
    "visual.": "CLIP",
}
"""Networks of other libraries that timm cannot load, by a part of their tensors' names."""

_NAMINGS = {
    "blocks.0.attn.qkv.": "a vision transformer",
    "stages.0.blocks.0.": "a ConvNeXt or a similar network",
    "blocks.0.0.": "an EfficientNet or MobileNet",
    "stem.1.conv2.conv.": "a RedNet",
    "layer1.0.conv1.": "a ResNet",
}
"""Networks of timm and of this package, by a part of the names of their tensors."""


class Filter(Protocol):
    """Translation of a published state dict to the names of a network, as timm defines it."""

    def __call__(self, state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors under the names of the network."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors of a network.

    Attributes:
        network: A network without memory (on the ``meta`` device) with :data:`MANY_CLASSES`.
        body: Tensors that do not depend on the number of classes.
        head: Tensors whose first axis is the number of classes.
    """

    network: nn.Module
    body: dict[str, Tensor]
    head: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> Layout:
        """Return the layout of a network with :data:`MANY_CLASSES`.

        Args:
            network: The network; it need not have memory.
        """
        state: dict[str, Tensor] = network.state_dict()
        head = {n: t for n, t in state.items() if t.ndim and t.shape[0] == MANY_CLASSES}
        return cls(network, {n: t for n, t in state.items() if n not in head}, head)

    @property
    def names(self) -> set[str]:
        """All names of the network."""
        return {*self.body, *self.head}


@dataclass(frozen=True)
class FittedWeights:
    """Tensors of a file under the names of a network, and those that do not fit.

    Attributes:
        prefix: The prefix that they have in the file.
        body: All tensors of the network but those of its classifier.
        head: The classifier; empty where the file has none, or not one of this network's kind.
        missing: Names of the network that the file does not have.
        reshaped: Names of both, with other shapes.
        unexpected: Names of the file under the prefix that the network does not have.
        strays: Tensors of the file that belong to a classifier of another kind.
        outside: Names of the file that are not under the prefix.
    """

    prefix: str
    body: dict[str, Tensor]
    head: dict[str, Tensor]
    missing: tuple[str, ...]
    reshaped: dict[str, Tensor]
    unexpected: dict[str, Tensor]
    strays: dict[str, Tensor]
    outside: dict[str, Tensor]

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the file's classifier; None where it has none that fits."""
        return next((tensor.shape[0] for tensor in self.head.values()), None)

    @property
    def faults(self) -> int:
        """Number of tensors that do not fit."""
        return len(self.missing) + len(self.reshaped) + len(self.unexpected)


def fit_weights(
    checkpoint: Checkpoint,
    layout: Layout,
    filters: Sequence[Filter] = (),
    *,
    resample: bool = False,
) -> FittedWeights:
    """Return the tensors of a file under the names of a network.

    Args:
        checkpoint: The file.
        layout: The network.
        filters: Translations of other layouts of names; see :func:`filters_of`.
        resample: Whether a filter may interpolate position embeddings to another image size.

    Raises:
        NetworkError: Tensors are missing, left over or of other shapes, or several networks of the
            file fit.
    """
    closest: list[FittedWeights] = []
    for root in checkpoint.roots:
        fitted = _fitted_in(root, layout, filters, resample)
        fitting = [one for one in fitted if one.faults == 0]
        if fitting:
            return _the_only(checkpoint, fitting)
        closest.append(min(fitted, key=lambda one: one.faults))
    raise _does_not_fit(checkpoint, layout, min(closest, key=lambda one: one.faults))


def named_root(checkpoint: Checkpoint, layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of a file that have most of a network's names, by these names.

    Shapes are ignored, since arguments of the model are inferred from those of the file.

    Args:
        checkpoint: The file.
        layout: A network of the same kind.
    """
    most, best = 0, checkpoint.roots[-1]
    for root in checkpoint.roots:
        for prefix, count in _prefixes(root, layout.names).most_common(1):
            if count > most:
                most, best = count, _under(root, prefix)
    return best


def filters_of(module: ModuleType) -> list[Filter]:
    """Return the translations of published state dicts that a module of models defines.

    Args:
        module: Module of timm, or another one that registers models with timm.
    """
    found = []
    for name, function in vars(module).items():
        if name.startswith(("checkpoint_filter_fn", "_filter")) and callable(function):
            found.append(_as_filter(function))
    return found


def _as_filter(function: Any) -> Filter:
    parameters = inspect.signature(function).parameters
    # timm sets this for DeiT III, whose layer scale has other names in published files; names of
    # other networks do not change
    extra = {"adapt_layer_scale": True} if "adapt_layer_scale" in parameters else {}

    def call(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        arguments = (state_dict, model) if "model" in parameters else (state_dict,)
        renamed: dict[str, Tensor] = function(*arguments, **extra)
        return renamed

    return call


def _fitted_in(
    root: dict[str, Tensor], layout: Layout, filters: Sequence[Filter], resample: bool
) -> list[FittedWeights]:
    """Return the fits of the tensors under each likely prefix, unchanged and translated."""
    counts = _prefixes(root, layout.names)
    most = max(counts.values(), default=0)
    likely = [p for p, count in counts.most_common(_MOST_PREFIXES) if 2 * count >= most]
    fitted = [_fitted(root, p, _under(root, p), layout) for p in likely or [""]]
    if any(one.faults == 0 and one.head for one in fitted):
        return fitted
    for prefix in _with_parents([*likely, *_crowded(root)]):
        tensors = _under(root, prefix)
        for function in filters:
            renamed = _renamed(function, tensors, layout, resample)
            if renamed is not None:
                fitted.append(_fitted(root, prefix, renamed, layout))
    return fitted


def _the_only(checkpoint: Checkpoint, fitting: list[FittedWeights]) -> FittedWeights:
    """Return the fit, preferably with a classifier; two different networks are refused."""
    # averaged weights (``ema``, ``model_ema``) next to those of the last step are not ambiguous
    words = {one.prefix: one.prefix.replace(".", "_").split("_") for one in fitting}
    last_step = [one for one in fitting if "ema" not in words[one.prefix]] or fitting
    best = min(last_step, key=lambda one: not one.head)
    others = {one.prefix for one in last_step if not _same(one, best)}
    if not others:
        return best
    prefixes = sorted({best.prefix, *others})
    raise NetworkError(
        "the file contains several fitting networks with different weights",
        where=checkpoint.path,
        expected="one network",
        got=f"names under {', '.join(repr(shown(prefix)) for prefix in prefixes[:_SHOWN])}",
        hint=f"save the state dict of one of them only, with names without {prefixes[-1]!r} "
        f"or {prefixes[0]!r}",
    )


def _same(one: FittedWeights, other: FittedWeights) -> bool:
    """Whether two fits have the same weights; one of them may lack the classifier."""
    mine, theirs = {**one.body, **one.head}, {**other.body, **other.head}
    return all(
        mine[name] is theirs[name] or torch.equal(mine[name], theirs[name])
        for name in mine.keys() & theirs.keys()
    )


def _fitted(
    root: dict[str, Tensor], prefix: str, tensors: dict[str, Tensor], layout: Layout
) -> FittedWeights:
    """Compare tensors with a layout, name by name."""
    tensors = {
        n: t
        for n, t in tensors.items()
        if n in layout.names or not (n.endswith(COUNTERS) or n.startswith(_TRAINING_ONLY))
    }
    body = {n: t for n, t in tensors.items() if n in layout.body and _fits(t, layout.body[n])}
    head = {n: t for n, t in tensors.items() if n in layout.head}
    reshaped = {n: t for n, t in tensors.items() if n in layout.body and n not in body}
    unknown = {n: t for n, t in tensors.items() if n not in layout.names}
    head_modules = tuple({f"{name.partition('.')[0]}." for name in layout.head})
    strays = {n: t for n, t in unknown.items() if n.startswith(head_modules)}
    if strays or not _is_head(head, layout):
        head, strays = {}, {**head, **strays}
    missing = [n for n in layout.body if n not in tensors and not n.endswith(COUNTERS)]
    return FittedWeights(
        prefix=prefix,
        body=body,
        head=head,
        missing=tuple(missing),
        reshaped=reshaped,
        unexpected={n: t for n, t in unknown.items() if n not in strays},
        strays=strays,
        outside={n: t for n, t in root.items() if not n.startswith(prefix)},
    )


def _fits(tensor: Tensor, own: Tensor) -> bool:
    # integers instead of floats are quantized weights, whose scales are other tensors
    return tensor.shape == own.shape and (tensor.is_floating_point() or not own.is_floating_point())


def _is_head(head: dict[str, Tensor], layout: Layout) -> bool:
    """Return whether tensors are a complete classifier of any number of classes."""
    sizes = {tensor.shape[0] for tensor in head.values() if tensor.ndim}
    return (
        head.keys() == layout.head.keys()
        and len(sizes) == 1
        and 0 not in sizes
        and all(
            tensor.ndim == layout.head[name].ndim
            and tensor.shape[1:] == layout.head[name].shape[1:]
            and tensor.is_floating_point()
            for name, tensor in head.items()
        )
    )


def _prefixes(tensors: Iterable[str], names: set[str]) -> Counter[str]:
    """Count the names of a network that follow each prefix."""
    counts: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for index in range(len(parts)):
            if ".".join(parts[index:]) in names:
                counts["".join(f"{part}." for part in parts[:index])] += 1
    return counts


def _crowded(root: dict[str, Tensor]) -> list[str]:
    """Return the longest prefixes under which more than half of all tensors are."""
    found, prefix = [""], ""
    for _ in range(4):
        level = Counter(
            name[: name.index(".", len(prefix)) + 1]
            for name in root
            if name.startswith(prefix) and "." in name[len(prefix) :]
        )
        if not level or 2 * level.most_common(1)[0][1] <= len(root):
            break
        prefix = level.most_common(1)[0][0]
        found.append(prefix)
    return found


def _with_parents(prefixes: list[str]) -> list[str]:
    """Return prefixes and all their parents once each, the longest first."""
    found = {""}
    for prefix in prefixes:
        parts = prefix.split(".")[:-1]
        found |= {"".join(f"{part}." for part in parts[:end]) for end in range(1, len(parts) + 1)}
    return sorted(found, key=lambda p: (-p.count("."), p))


def _under(root: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in root.items() if n.startswith(prefix)}


def _renamed(
    function: Filter, tensors: dict[str, Tensor], layout: Layout, resample: bool
) -> dict[str, Tensor] | None:
    """Return tensors as translated by a filter; None where it fails."""
    try:
        renamed = function(dict(tensors), layout.network)
    except Exception:  # filters fail on layouts that they were not written for
        return None
    kept = {n: t for n, t in renamed.items() if isinstance(t, Tensor) and not t.is_meta}
    for name, tensor in tensors.items():
        changed = name in kept and kept[name].numel() != tensor.numel()
        # interpolated kernels or positions would silently be another network
        if changed and not (resample and any(part in name for part in _POSITIONS)):
            kept[name] = tensor
    return kept


def _does_not_fit(checkpoint: Checkpoint, layout: Layout, closest: FittedWeights) -> NetworkError:
    """Return the error with the differing tensors of network and file."""
    if 2 * (len(closest.body) + len(closest.reshaped)) < len(layout.body):
        everything = checkpoint.roots[-1]  # the few common names are a coincidence
        closest = _fitted(everything, "", everything, layout)
    own = {**layout.body, **layout.head}
    wanted = {name: own[name] for name in (*closest.reshaped, *closest.missing)}
    under = f", names under {shown(closest.prefix)!r}" if closest.prefix else ""
    return NetworkError(
        "the weights do not fit the network",
        where=f"{checkpoint.path}{under}",
        expected=f"{_name(layout)}: {listed(wanted) or 'no further tensors'}",
        got=listed({**closest.reshaped, **closest.unexpected}) or "none of them",
        hint=_likeness(checkpoint, layout),
    )


def _name(layout: Layout) -> str:
    cfg: Any = getattr(layout.network, "pretrained_cfg", {})
    return str(cfg.get("architecture", "the network"))


def _likeness(checkpoint: Checkpoint, layout: Layout) -> str:
    """Return a hint at the network that the file probably contains."""
    if checkpoint.architecture is not None:
        return f"the file names the architecture {shown(checkpoint.architecture)!r}"
    for part, text in _FOREIGN.items():
        if _have(checkpoint.roots[-1], part) and not _have(layout.names, part):
            return f"the names are those of {text}: rename them to timm's, or use timm's own file"
    for part, text in _NAMINGS.items():
        if _have(checkpoint.roots[-1], part):
            same = _have(layout.names, part)
            which = " with other arguments: check model and kwargs" if same else ": give that model"
            return f"the names are those of {text}{which}"
    return "give the model that the file was saved from, and its kwargs"


def _have(names: Iterable[str], part: str) -> bool:
    return any(part in name for name in names)


def listed(tensors: dict[str, Tensor]) -> str:
    """Return the first names of tensors with their shapes, and the number of other ones.

    Args:
        tensors: By name.
    """
    first = [f"{shown(n)} {tuple(t.shape)}{_kind(t)}" for n, t in list(tensors.items())[:_SHOWN]]
    more = len(tensors) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _kind(tensor: Tensor) -> str:
    return "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
