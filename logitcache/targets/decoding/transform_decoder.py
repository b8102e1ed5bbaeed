"""Decoder of the transform encoding on the device of a batch.

Shapes: B batch, C classes, D directions, m refined classes, f of them with 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from logitcache.encoding.transform import NOT_COMPUTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from logitcache.encoding.transform import TransformEncoding

__all__ = ["TransformDecoder"]

# By type of device, how probabilities are summed: as in numpy; many accelerators are slow in
# float64, so the others use float32.
_SUM_TYPES = {"cpu": torch.float64}


class _Constants(NamedTuple):
    """Numbers of an encoding on one device.

    Attributes:
        directions: float32 (D, C).
        mean: float32 (C,).
        steps: Distance of two corrections of each refined class in nats, float32 (m,).
        class_ids: int64 (C,).
    """

    directions: Tensor
    mean: Tensor
    steps: Tensor
    class_ids: Tensor


class TransformDecoder:
    """Decoder of rows of the transform encoding, in PyTorch.

    Its scores and refined classes are those of :meth:`.TransformEncoding.decode` on every device.
    The basis is kept on each device that rows were decoded on.

    Args:
        encoding: The encoding.
    """

    def __init__(self, encoding: TransformEncoding) -> None:
        self._encoding = encoding
        self._constants: dict[torch.device, _Constants] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which may have other devices."""
        return {**self.__dict__, "_constants": {}}

    def __call__(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Decode rows.

        Args:
            arrays: The arrays of the encoding, uint8 (B, ...), on one device.

        Returns:
            Log-probabilities at T = 1, float32 (B, C), NaN in rows that were not computed.
        """
        encoding, coefficients = self._encoding, arrays["coefficients"]
        steps_m = self._constants_on(coefficients.device).steps
        scores_BC = self.scores(coefficients)
        ids_Bm = self.refined_ids(scores_BC)
        # the same roundings to float32 as in numpy: of the scale, of the product, of the sum
        logits_BC = scores_BC * float(np.float32(encoding.basis.scale))
        corrections_Bm = _unpacked(arrays["refinements"], encoding.fine, encoding.refined) * steps_m
        logits_BC.scatter_add_(1, ids_Bm, corrections_Bm)  # each class at most once
        logits_BC -= logits_BC.amax(1, keepdim=True)
        sum_type = _SUM_TYPES.get(logits_BC.device.type, torch.float32)
        total_B1 = logits_BC.to(sum_type).exp().sum(1, keepdim=True).log()
        log_probs_BC = (logits_BC - total_B1).float()
        return log_probs_BC.masked_fill(coefficients[:, :1] == NOT_COMPUTED, torch.nan)

    def scores(self, coefficients_Bk: Tensor) -> Tensor:
        """Return the integer scores of all classes, exact in float32: (B, C)."""
        basis, constants = self._encoding.basis, self._constants_on(coefficients_Bk.device)
        codes_BD = _unpacked(coefficients_Bk, basis.wide, basis.count)
        # Codes and directions are int8, which TF32 and bfloat16 represent, and all partial sums are
        # integers below 2^24: the product is exact in any order of summation, also on tensor cores,
        # as long as the result is float32, which autocast would change.
        with torch.autocast(codes_BD.device.type, enabled=False):
            return codes_BD @ constants.directions + constants.mean

    def refined_ids(self, scores_BC: Tensor) -> Tensor:
        """Return the classes with the m highest scores, of equal ones the lowest ids: (B, m).

        The f highest first, ascending, then the others, ascending.
        """
        encoding = self._encoding
        # distinct integers, as in numpy, since topk returns any of equal values
        ranks_BC = scores_BC.long() * encoding.num_classes
        ranks_BC -= self._constants_on(scores_BC.device).class_ids
        ids_Bm = ranks_BC.topk(encoding.refined, 1).indices
        fine_Bf, others_B = ids_Bm[:, : encoding.fine], ids_Bm[:, encoding.fine :]
        return torch.cat([fine_Bf.sort(1).values, others_B.sort(1).values], 1)

    def _constants_on(self, device: torch.device) -> _Constants:
        found = self._constants.get(device)
        if found is None:
            basis, steps_m = self._encoding.basis, self._encoding.correction_steps()
            # converted before they are copied: the copy is waited for, so any stream can use them
            found = self._constants[device] = _Constants(
                directions=torch.from_numpy(basis.directions.astype(np.float32)).to(device),
                mean=torch.from_numpy(basis.mean.astype(np.float32)).to(device),
                steps=torch.from_numpy(steps_m.astype(np.float32)).to(device),
                class_ids=torch.arange(self._encoding.num_classes).to(device),
            )
        return found


def _unpacked(packed_Bk: Tensor, wide: int, count: int) -> Tensor:
    """Return the codes of rows of bytes: float32 (B, count).

    Args:
        packed_Bk: uint8: one code in each of the first bytes, then two, the first of them in the
            lower four bits.
        wide: Number of codes with a byte of their own.
        count: Number of codes.
    """
    pairs_Bk = packed_Bk[:, wide:]
    halves_Bk2 = torch.stack([pairs_Bk & 15, pairs_Bk >> 4], 2)
    narrow_BK = (halves_Bk2 ^ 8).flatten(1).float() - 8.0  # two's complement of four bits
    wide_BK = packed_Bk[:, :wide].view(torch.int8).float()
    return torch.cat([wide_BK, narrow_BK], 1)[:, :count]
