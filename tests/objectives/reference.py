"""Losses written down a second time, as plain loops over Python floats.

Nothing here shares a line with the package; values are exact to the last bits of float64.
"""

from __future__ import annotations

import math

Row = list[float]


def log_softmax(z: Row) -> Row:
    peak = max(z)
    total = math.log(math.fsum(math.exp(value - peak) for value in z)) + peak
    return [value - total for value in z]


def kl(q: Row, log_s: Row) -> float:
    """sum q (log q - log s), where 0 log 0 = 0."""
    return math.fsum(a * (math.log(a) - b) for a, b in zip(q, log_s, strict=True) if a > 0)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value >= 0 else value - math.log1p(math.exp(value))


def binary_cross_entropy(z: Row, y: Row, smoothing: float = 0.0) -> float:
    """-sum over classes of y log sigmoid(z) + (1 - y) log sigmoid(-z)."""
    total = []
    for value, share in zip(z, y, strict=True):
        target = (1 - smoothing) * share + smoothing / 2
        total.append(-target * log_sigmoid(value) - (1 - target) * log_sigmoid(-value))
    return math.fsum(total)


def binary_divergence(z: Row, t: Row, temperature: float) -> float:
    """T^2 times the sum over classes of KL of two Bernoulli distributions at temperature T."""
    total = []
    for own, other in zip(z, t, strict=True):
        student, teacher = own / temperature, other / temperature
        for sign in (1, -1):
            p = sigmoid(sign * teacher)
            total.append(p * (log_sigmoid(sign * teacher) - log_sigmoid(sign * student)))
    return temperature**2 * math.fsum(total)


def dense(z: Row, teacher_log_p: Row, temperature: float) -> float:
    """T^2 KL of two dense distributions, both at temperature T."""
    student = log_softmax([value / temperature for value in z])
    teacher = log_softmax([value / temperature for value in teacher_log_p])
    return temperature**2 * kl([math.exp(value) for value in teacher], student)


def tail_mass(tail: tuple[float, float], absent: int, b: float) -> float:
    """M(b): exp of the quadratic through log M(0) = log t, log M(1/4) and log M(1), by Lagrange."""
    points = [(0.0, math.log(absent)), (0.25, tail[1]), (1.0, tail[0])]
    value = 0.0
    for i, (x_i, y_i) in enumerate(points):
        term = y_i
        for j, (x_j, _) in enumerate(points):
            if i != j:
                term *= (b - x_j) / (x_i - x_j)
        value += term
    return math.exp(value)


def sparse(
    z: Row,
    present: dict[int, float],
    tail: tuple[float, float],
    temperature: float,
    mode: str,
) -> float:
    """T^2 KL of a reconstructed sparse teacher; ``present`` maps class to log p."""
    b = 1.0 / temperature
    classes = len(z)
    absent = [c for c in range(classes) if c not in present]
    weights = {c: math.exp(b * log_p) for c, log_p in present.items()}
    mass = tail_mass(tail, len(absent), b) if absent else 0.0
    student = log_softmax([value / temperature for value in z])
    if mode == "renorm":
        total = math.fsum(weights.values())
        return temperature**2 * kl(
            [w / total for w in weights.values()], [student[c] for c in weights]
        )
    total = math.fsum(weights.values()) + mass
    q = [weights[c] / total for c in weights]
    s = [student[c] for c in weights]
    if mode == "uniform":
        q += [mass / len(absent) / total for _ in absent]
        s += [student[c] for c in absent]
    elif absent:
        q.append(mass / total)
        s.append(math.log(math.fsum(math.exp(student[c]) for c in absent)))
    return temperature**2 * kl(q, s)


def cross_entropy(z: Row, label: int, smoothing: float) -> float:
    student = log_softmax(z)
    spread = smoothing / len(z)
    return -math.fsum(
        ((1 - smoothing) * (c == label) + spread) * value for c, value in enumerate(student)
    )


def without(values: Row, label: int) -> Row:
    return [value for c, value in enumerate(values) if c != label]


def split(z: Row, teacher_log_p: Row, label: int, form: str, others: float, temp: float) -> float:
    """NKD or DKD of one row: softmaxes over all but the label, written out."""
    student = log_softmax([value / temp for value in z])
    teacher = log_softmax([value / temp for value in teacher_log_p])
    s_rest = log_softmax(without([value / temp for value in z], label))
    t_rest = [math.exp(v) for v in log_softmax(without([v / temp for v in teacher_log_p], label))]
    if form == "nkd":
        target = -math.exp(teacher_log_p[label]) * log_softmax(z)[label]
        rest = -math.fsum(a * b for a, b in zip(t_rest, s_rest, strict=True))
        return target + others * temp**2 * rest
    p_y, s_y = math.exp(teacher[label]), math.exp(student[label])
    s_not_y = math.fsum(math.exp(value) for value in without(student, label))
    p_not_y = math.fsum(math.exp(value) for value in without(teacher, label))
    binary = kl([p_y, p_not_y], [math.log(s_y), math.log(s_not_y)])
    return temp**2 * (binary + others * kl(t_rest, s_rest))
