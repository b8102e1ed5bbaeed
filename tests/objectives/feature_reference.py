"""Losses on features written down a second time, as plain loops over Python floats.

Nothing here shares a line with the package. A row is a list of positions, a position a list of
channels; a map is a square of positions, row by row.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Vector = list[float]
Row = list[Vector]


def gradient(loss: Callable[[Tensor], float], at: Tensor, step: float = 1e-6) -> Tensor:
    """Return the central differences of a function of a tensor."""
    found = torch.zeros_like(at)
    for index in itertools.product(*(range(size) for size in at.shape)):
        up, down = at.clone(), at.clone()
        up[index] += step
        down[index] -= step
        found[index] = (loss(up) - loss(down)) / (2 * step)
    return found


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def length(a: Vector) -> float:
    return math.sqrt(dot(a, a))


def one(metric: str, a: float, b: float) -> float:
    off = abs(a - b)
    if metric == "l1":
        return off
    if metric == "l2":
        return off**2
    return off**2 / 2 if off < 1 else off - 0.5


def position(metric: str, a: Vector, b: Vector) -> Vector:
    """Return the difference of every channel; of cosine one number."""
    if metric == "cosine":
        return [1 - dot(a, b) / (length(a) * length(b))]
    return [one(metric, x, y) for x, y in zip(a, b, strict=True)]


def match(
    student: list[Row], teacher: list[Row], metric: str, reduction: str, counts: Vector
) -> float:
    """The loss of rows at positions that stand for so many each."""
    total = weight = 0.0
    for row, wanted in zip(student, teacher, strict=True):
        for a, b, count in zip(row, wanted, counts, strict=True):
            each = position(metric, a, b)
            total += count * math.fsum(each) / (1 if reduction == "sum" else len(each))
            weight += count
    return total / (len(student) if reduction == "sum" else weight)


def unit(row: Row) -> Row:
    return [[x / length(a) for x in a] for a in row]


def standardize(row: Row) -> Row:
    """Give each channel mean 0 and standard deviation 1 over positions, to within 1e-6."""
    columns = []
    for column in zip(*row, strict=True):
        mean = math.fsum(column) / len(column)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in column) / len(column))
        columns.append([(x - mean) / (deviation + 1e-6) for x in column])
    return [list(channels) for channels in zip(*columns, strict=True)]


def pool(row: Row, side: int) -> Row:
    """Average a square of positions to a smaller one whose side divides its own."""
    grid = math.isqrt(len(row))
    step = grid // side
    pooled = []
    for y, x in itertools.product(range(side), range(side)):
        cell = [
            row[(y * step + dy) * grid + x * step + dx]
            for dy, dx in itertools.product(range(step), range(step))
        ]
        pooled.append([math.fsum(column) / len(cell) for column in zip(*cell, strict=True)])
    return pooled


def linear(row: Row, weight: list[Vector], bias: Vector) -> Row:
    return [[dot(w, a) + b for w, b in zip(weight, bias, strict=True)] for a in row]


def convolve(row: Row, weight: list[list[list[Vector]]], bias: Vector) -> Row:
    """A square of weights over a square of positions, with zeros around it."""
    grid, half = math.isqrt(len(row)), len(weight[0][0]) // 2
    out = []
    for y, x in itertools.product(range(grid), range(grid)):
        values = list(bias)
        for dy, dx in itertools.product(range(-half, half + 1), repeat=2):
            if 0 <= y + dy < grid and 0 <= x + dx < grid:
                here = row[(y + dy) * grid + x + dx]
                for e in range(len(bias)):
                    values[e] += math.fsum(
                        weight[e][d][dy + half][dx + half] * here[d] for d in range(len(here))
                    )
        out.append(values)
    return out


def batch_norm(rows: list[Row], weight: Vector, bias: Vector) -> list[Row]:
    """Give each channel mean 0 and variance 1 over all rows and positions, to within 1e-5."""
    every = [a for row in rows for a in row]
    out = [[list(a) for a in row] for row in rows]
    for c in range(len(weight)):
        column = [a[c] for a in every]
        mean = math.fsum(column) / len(column)
        variance = math.fsum((x - mean) ** 2 for x in column) / len(column)
        for a in (a for row in out for a in row):
            a[c] = (a[c] - mean) / math.sqrt(variance + 1e-5) * weight[c] + bias[c]
    return out


def mean_of(row: Row) -> Vector:
    """Average positions."""
    return [math.fsum(column) / len(row) for column in zip(*row, strict=True)]


def added(a: Row, b: Row) -> Row:
    return [[x + y for x, y in zip(u, v, strict=True)] for u, v in zip(a, b, strict=True)]


def relu(row: Row) -> Row:
    return [[max(0.0, x) for x in a] for a in row]


def gram(student: Row, teacher: Row, reduction: str) -> float:
    each = [
        (dot(student[i], student[j]) - dot(teacher[i], teacher[j])) ** 2
        for i, j in itertools.product(range(len(student)), repeat=2)
    ]
    return math.fsum(each) / (1 if reduction == "sum" else len(each))


def distances(things: Row) -> list[Vector]:
    count = len(things)
    found = [[0.0] * count for _ in range(count)]
    for i, j in itertools.permutations(range(count), 2):
        off = [a - b for a, b in zip(things[i], things[j], strict=True)]
        found[i][j] = max(length(off), 1e-6)
    positive = [d for line in found for d in line if d > 0]
    mean = math.fsum(positive) / len(positive)
    return [[d / mean for d in line] for line in found]


def rkd_distance(student: Row, teacher: Row) -> float:
    s, t = distances(student), distances(teacher)
    count = len(s)
    return math.fsum(
        one("huber", s[i][j], t[i][j]) for i, j in itertools.product(range(count), repeat=2)
    ) / (count**2)


def cosine_at(things: Row, i: int, j: int, k: int) -> float:
    a = [y - x for x, y in zip(things[i], things[j], strict=True)]
    b = [y - x for x, y in zip(things[i], things[k], strict=True)]
    return dot(a, b) / (length(a) * length(b)) if length(a) and length(b) else 0.0


def rkd_angle(student: Row, teacher: Row) -> float:
    count = len(student)
    return math.fsum(
        one("huber", cosine_at(student, i, j, k), cosine_at(teacher, i, j, k))
        for i, j, k in itertools.product(range(count), repeat=3)
    ) / (count**3)


def cka(student: Row, teacher: Row) -> float:
    """One minus the alignment, from the definition with HSIC: centerd with H = I - 1/M."""

    def centerd(things: Row) -> list[Vector]:
        k = [[dot(a, b) for b in things] for a in things]
        count = len(k)
        rows = [math.fsum(line) / count for line in k]
        whole = math.fsum(rows) / count
        return [[k[i][j] - rows[i] - rows[j] + whole for j in range(count)] for i in range(count)]

    def hsic(a: list[Vector], b: list[Vector]) -> float:
        return math.fsum(dot(x, y) for x, y in zip(a, b, strict=True))

    s, t = centerd(student), centerd(teacher)
    return 1 - hsic(s, t) / math.sqrt(hsic(s, s) * hsic(t, t))


def layer_norm(row: Row, weight: Vector, bias: Vector) -> Row:
    """Give the channels of each position mean 0 and variance 1, to within 1e-5."""
    out = []
    for a in row:
        mean = math.fsum(a) / len(a)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in a) / len(a) + 1e-5)
        out.append(
            [(x - mean) / deviation * w + b for x, w, b in zip(a, weight, bias, strict=True)]
        )
    return out


def attention(row: Row, state: dict[str, Any], heads: int) -> Row:
    """Attention of several heads, the weights named as torch names them."""
    width = len(row[0])
    size = width // heads
    qkv = linear(row, state["in_proj_weight"], state["in_proj_bias"])
    out: Row = [[0.0] * width for _ in row]
    for head in range(heads):
        at = range(head * size, (head + 1) * size)
        for i, query in enumerate(qkv):
            scores = [
                math.fsum(query[c] * key[width + c] for c in at) / math.sqrt(size) for key in qkv
            ]
            total = math.fsum(math.exp(score) for score in scores)
            for c in at:
                out[i][c] = math.fsum(
                    math.exp(score) / total * value[2 * width + c]
                    for score, value in zip(scores, qkv, strict=True)
                )
    return linear(out, state["out_proj.weight"], state["out_proj.bias"])


def block(row: Row, state: dict[str, Any], heads: int) -> Row:
    """A transformer block with norms before attention and MLP, the weights named as torch's."""

    def part(prefix: str) -> Any:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def gelu(a: Row) -> Row:
        return [[x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in u] for u in a]

    first, second, up, down = (
        part(f"{name}.") for name in ("norm1", "norm2", "linear1", "linear2")
    )
    normed = layer_norm(row, first["weight"], first["bias"])
    row = added(row, attention(normed, part("self_attn."), heads))
    normed = layer_norm(row, second["weight"], second["bias"])
    hidden = gelu(linear(normed, up["weight"], up["bias"]))
    return added(row, linear(hidden, down["weight"], down["bias"]))
