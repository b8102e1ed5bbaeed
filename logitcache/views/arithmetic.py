"""Elementary functions with the same bits on every platform.

exp, log and sin of libm differ between platforms in the last bit, and one bit can move a box. So
these use only operations that IEEE 754 rounds correctly (+, -, *, /, sqrt, rounding) and literal
tables, in this order; ``docs/views.md`` is normative.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cosine", "exp2", "log2", "normal_quantile", "normal_quantiles", "sine"]

# 2^f = sum of c[i] f^i for |f| <= 1/2: ln(2)^i / i!
_EXP2 = (
    1.0,
    0.6931471805599453,
    0.24022650695910072,
    0.05550410866482158,
    0.009618129107628477,
    0.0013333558146428443,
    0.0001540353039338161,
    1.5252733804059841e-05,
    1.321548679014431e-06,
    1.01780860092397e-07,
    7.054911620801123e-09,
    4.4455382718708116e-10,
    2.5678435993488206e-11,
    1.3691488853904128e-12,
)
_SQRT_HALF = 0.7071067811865476
_TWO_OVER_LN2 = 2.8853900817779268
_LN2 = 0.6931471805599453
_RADIANS = 0.017453292519943295
_TERMS = 15  # of the series of sine and cosine: enough for half a turn

# Wichura, "The percentage points of the normal distribution", Applied Statistics 37 (1988), AS 241:
# numerator and denominator near the median, in the flanks and in the tails.
_MIDDLE = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_FLANK = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_TAIL = (
    (
        6.65790464350110377720e0,
        5.46378491116411436990e0,
        1.78482653991729133580e0,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)


def exp2(x: float) -> float:
    """Return 2^x by a table and Horner's rule."""
    whole = round(x)
    mantissa: float = _horner(_EXP2, x - whole)
    return math.ldexp(mantissa, whole)


def log2(x: float) -> float:
    """Return the binary logarithm of x > 0 by the series of atanh."""
    mantissa, exponent = math.frexp(x)
    if mantissa < _SQRT_HALF:
        mantissa, exponent = 2.0 * mantissa, exponent - 1
    fraction: float = _log2_of_mantissa(mantissa)
    return exponent + fraction


def sine(degrees: float) -> float:
    """Return the sine of an angle of at most 180 degrees either way, by its series."""
    x = degrees * _RADIANS
    return x * _alternating(x * x, 1)


def cosine(degrees: float) -> float:
    """Return the cosine of an angle of at most 180 degrees either way, by its series."""
    x = degrees * _RADIANS
    return _alternating(x * x, 0)


def normal_quantile(u: float) -> float:
    """Return the standard normal deviate of a unit float: AS 241 at the middle of its 2^-52."""
    p = (math.floor(u * 2.0**52) + 0.5) * 2.0**-52
    q = p - 0.5
    deviate: float
    if abs(q) <= 0.425:
        deviate = q * _ratio(_MIDDLE, 0.180625 - q * q)
        return deviate
    r = math.sqrt(-(_LN2 * log2(p if q < 0 else 1.0 - p)))
    deviate = _ratio(_FLANK, r - 1.6) if r <= 5.0 else _ratio(_TAIL, r - 5.0)
    return -deviate if q < 0 else deviate


def normal_quantiles(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return :func:`normal_quantile` of every element, to the same bits."""
    p = (np.floor(u * 2.0**52) + 0.5) * 2.0**-52
    q = p - 0.5
    middle = q * _ratio(_MIDDLE, 0.180625 - q * q)
    r = np.sqrt(-(_LN2 * _log2_array(np.where(q < 0, p, 1.0 - p))))
    outer = np.where(r <= 5.0, _ratio(_FLANK, r - 1.6), _ratio(_TAIL, r - 5.0))
    found: NDArray[np.float64] = np.where(
        np.abs(q) <= 0.425, middle, np.where(q < 0, -outer, outer)
    )
    return found


def _log2_array(x: NDArray[np.float64]) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    logs: NDArray[np.float64] = (exponent - low) + _log2_of_mantissa(mantissa)
    return logs


def _log2_of_mantissa(mantissa: Any) -> Any:
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    total = 0.0
    for odd in range(25, 0, -2):
        total = total * square + 1.0 / odd
    return _TWO_OVER_LN2 * (s * total)


def _alternating(square: float, first: int) -> float:
    """Return 1 - s / ((f+1)(f+2)) + s^2 / ((f+1)...(f+4)) - ..., innermost term first."""
    total = 1.0
    for term in range(_TERMS, 0, -1):
        below = 2 * term + first
        total = 1.0 - total * square / (below * (below - 1))
    return total


def _ratio(table: tuple[tuple[float, ...], tuple[float, ...]], x: Any) -> Any:
    return _horner(table[0], x) / _horner(table[1], x)


def _horner(coefficients: tuple[float, ...], x: Any) -> Any:
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
