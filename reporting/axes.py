"""Ticks of an axis."""

import math


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """At most `count` round numbers from low to high: multiples of 1, 2, 5, 10, 20 and so on."""
    exponent = math.floor(math.log10((high - low) / count))
    step = next(
        (
            m * 10.0**e
            for e in (exponent, exponent + 1)
            for m in (1, 2, 5)
            if m * 10.0**e * (count - 1) >= high - low
        ),
        10.0 ** (exponent + 2),
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]
