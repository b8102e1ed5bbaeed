"""Prototypes of a file, and the soft assignment of features to them.

Shapes: B batch, P positions, K prototypes, E channels of the prototypes.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from logitcache.errors import UsageError

__all__ = ["PrototypeTable", "read_prototypes"]

_TENSORS = ("centers", "weight", "bias")


class PrototypeTable(nn.Module):
    """Prototypes c_k, and the assignment of features to them; they are not trained.

    Args:
        centers: The prototypes c, (K, E).
        weight: Weights w of the assignment, (K, E).
        bias: Biases b of the assignment, (K,).
    """

    def __init__(self, centers: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.centers = nn.Buffer(centers)
        self.weight, self.bias = nn.Buffer(weight), nn.Buffer(bias)

    @classmethod
    def of(cls, centers: Tensor, scale: float) -> PrototypeTable:
        """Return the table of an assignment by distance, a_jk = softmax over k of -s |p_j - c_k|^2.

        It is that of NetVLAD (Arandjelović et al., CVPR 2016): w_k = 2 s c_k and b_k = -s |c_k|^2.

        Args:
            centers: The prototypes c, (K, E).
            scale: Sharpness s, one over squared units of the features.
        """
        return cls(centers, 2 * scale * centers, -scale * centers.square().sum(1))

    @property
    def channels(self) -> int:
        """E."""
        return self.centers.shape[1]

    def log_shares(self, features_E: Tensor, temperature: float = 1.0) -> Tensor:
        """Return log a of the assignment, a_jk = softmax over k of (w_k . p_j + b_k) / T.

        Args:
            features_E: Features p, (..., E).
            temperature: T.

        Returns:
            (..., K).
        """
        return ((features_E @ self.weight.T + self.bias) / temperature).log_softmax(-1)

    def descriptors(self, features_BPE: Tensor) -> Tensor:
        """Return V_k = sum over j of a_jk (p_j - c_k), (B, K, E), which sums up the features.

        Args:
            features_BPE: Features p.
        """
        shares_BKP = self.log_shares(features_BPE).exp().transpose(1, 2)
        return shares_BKP @ features_BPE - shares_BKP.sum(2, keepdim=True) * self.centers


def read_prototypes(file: str, where: str) -> PrototypeTable:
    """Read the prototypes that ``learn_prototypes`` wrote.

    Args:
        file: The file.
        where: Name of the term, for messages.

    Raises:
        UsageError: There is no such file, or it has no prototypes.
    """
    path = Path(file).expanduser()
    try:
        tensors = load_file(path) if path.is_file() else None
    except SafetensorError as error:
        got: object = f"a file that is not of this format: {error}"
    else:
        if tensors is not None and set(_TENSORS) <= tensors.keys():
            return PrototypeTable(*(tensors[name] for name in _TENSORS))
        got = "no such file" if tensors is None else "tensors " + ", ".join(sorted(tensors))
    raise UsageError(
        f"no prototypes can be read from {file}",
        where=f"{where}, file",
        expected="a .safetensors file of logitcache tools learn-prototypes",
        got=got,
        hint="learn them first; in a pipeline, file: stage:NAME of a stage learn_prototypes",
    )
