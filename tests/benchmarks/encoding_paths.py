"""Classes, codes and tails of logits that PyTorch ranks and sums, compared with those of numpy.

The package encodes with numpy: log p in float64, classes ranked by it, ties to the lowest id. An
accelerator would rank float32 logits and sum in float64 or float32, and only K classes, the tail
and lse would be copied from it. How many stored numbers would differ? 10^6 rows: those of a file of
:mod:`tests.benchmarks.imagenet_logits`, times a number from 0.25 to 4 for each row, in float32, and
as many again after rounding to bfloat16, which makes ties::

    python -m tests.benchmarks.encoding_paths logits.npz --rows 1000000
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitcache.encoding.codes import codes_of
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.topk import delta_decode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.encoding.arrays import Encoded

TOP_K, BITS, AT_ONCE = 50, (8, 5), 4096
SUMS = {"float64": torch.float64, "float32": torch.float32}


def by_torch(logits_BC: Tensor, encoding: SparseEncoding, dtype: torch.dtype) -> Encoded:
    """Return class ids, codes, tail and lse, from float32 logits and sums in a data type."""
    order_BK = torch.sort(logits_BC, dim=1, descending=True, stable=True).indices
    ids_BK = order_BK[:, : encoding.top_k].sort(1).values
    wide_BC = logits_BC.to(dtype)
    lse_B1 = torch.logsumexp(wide_BC, 1, keepdim=True)
    log_p_BC = wide_BC - lse_B1
    absent_BC = log_p_BC.scatter(1, ids_BK, -torch.inf)
    tail_B2 = torch.stack([torch.logsumexp(b * absent_BC, 1) for b in (1.0, 0.25)], 1)
    kept_BK: NDArray[np.float64] = log_p_BC.gather(1, ids_BK).double().numpy()
    return {
        "class_ids": ids_BK.numpy(),
        "codes": codes_of(encoding.coded_log_probs(kept_BK), encoding.levels),
        "tail": tail_B2.numpy().astype(np.float16),
        "lse": lse_B1[:, 0].numpy().astype(np.float32),
    }


def by_numpy(logits_BC: NDArray[np.float32], encoding: SparseEncoding) -> Encoded:
    """Return the same as the package stores them."""
    log_probs_BC, lse_B = log_softmax(logits_BC)
    encoded = encoding.encode(log_probs_BC)
    encoded["class_ids"] = delta_decode(encoded["class_ids"])
    return {**encoded, "lse": lse_B.astype(np.float32)}


def compare(logits_BC: NDArray[np.float32], counts: Counter[tuple[str, int, str]]) -> None:
    """Count the numbers that differ, by type of sums, bits and array."""
    for bits in BITS:
        encoding = SparseEncoding.new(logits_BC.shape[1], TOP_K, bits=bits)
        expected = by_numpy(logits_BC, encoding)
        for name, dtype in SUMS.items():
            found = by_torch(torch.from_numpy(logits_BC), encoding, dtype)
            same_B = (found["class_ids"] == expected["class_ids"]).all(axis=1)
            counts[name, bits, "rows with other classes"] += int((~same_B).sum())
            for array in ("codes", "tail", "lse"):
                other = found[array][same_B] != expected[array][same_B]
                counts[name, bits, f"{array} that differ"] += int(other.sum())
                counts[name, bits, f"{array}"] += other.size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("logits", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    stored = np.load(arguments.logits)["logits"]
    logits_NC: NDArray[np.float32] = stored.reshape(-1, stored.shape[-1])
    generator = np.random.default_rng(0)
    kinds = ("float32", "bfloat16")
    counts: dict[str, Counter[tuple[str, int, str]]] = {kind: Counter() for kind in kinds}
    for start in range(0, arguments.rows, AT_ONCE):
        rows = generator.integers(len(logits_NC), size=min(AT_ONCE, arguments.rows - start))
        scale = 2 ** generator.uniform(-2, 2, (len(rows), 1)).astype(np.float32)
        scaled = logits_NC[rows] * scale
        compare(scaled, counts["float32"])
        compare(torch.from_numpy(scaled).bfloat16().float().numpy(), counts["bfloat16"])
    print(f"{arguments.rows} rows of each, K = {TOP_K}")
    print("| logits | sums | bits | other classes | codes | tail | lse |")
    print("|---|---|---|---|---|---|---|")
    for kind, found in counts.items():
        for sums in SUMS:
            for bits in BITS:
                cells = [f"{found[sums, bits, 'rows with other classes']} rows"]
                for array in ("codes", "tail", "lse"):
                    other, of = (found[sums, bits, n] for n in (f"{array} that differ", array))
                    cells.append(f"{other} of {of}")
                print(f"| {kind} | {sums} | {bits} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
