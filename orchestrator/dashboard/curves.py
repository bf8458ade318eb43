"""Learning curves as columns, reduced to the points that a screen can show."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.tune.records import Point

Curve = dict[str, NDArray[np.float64]]  # by metric, also step and seconds; NaN for missing values

DIGITS = 6  # significant digits of a value: more than a screen's pixels


def columns(points: Sequence[Point]) -> Curve:
    """The points of a curve by metric: a fraction of the memory that as many dictionaries take."""
    names = dict.fromkeys(name for point in points for name in point)
    return {
        name: np.array([point.get(name, np.nan) for point in points], dtype=np.float64)
        for name in ("step", "seconds", *(n for n in names if n not in ("step", "seconds")))
    }


def thinned(curve: Curve, metric: str, most: int) -> dict[str, list[float | None]]:
    """At most about `most` points of a metric's curve: `step`, `seconds` and `value`.

    Of each stretch its lowest and its highest point stay, so that no spike is lost.
    """
    steps = curve["step"]
    values = curve.get(metric, np.full(len(steps), np.nan))
    chosen = _extremes(values, max(1, most // 2)) if len(steps) > most else slice(None)
    return {
        "step": plain_list(steps[chosen]),
        "seconds": plain_list(np.round(curve["seconds"][chosen], 2)),
        "value": plain_list(values[chosen], DIGITS),
    }


def _extremes(values: NDArray[np.float64], stretches: int) -> NDArray[np.int64]:
    """The indices of the first and last value, and of each section's minimum and maximum."""
    width = -(-len(values) // stretches)
    padded = np.full(stretches * width, np.nan)
    padded[: len(values)] = values
    table = padded.reshape(stretches, width)
    known = np.isfinite(table)
    starts = np.arange(stretches) * width
    lowest = starts + np.where(known, table, np.inf).argmin(axis=1)
    highest = starts + np.where(known, table, -np.inf).argmax(axis=1)
    indices = np.unique(np.concatenate([[0], lowest, highest, [len(values) - 1]]))
    return indices[indices < len(values)].astype(np.int64)


def plain_list(values: NDArray[np.float64], digits: int | None = None) -> list[float | None]:
    """Numbers for JSON: null for NaN and infinities, whole numbers without a fraction."""
    if digits is None:
        plain = [int(v) if v == int(v) else v for v in np.nan_to_num(values).tolist()]
    else:
        plain = [float(f"{value:.{digits}g}") for value in values.tolist()]
    return [v if ok else None for v, ok in zip(plain, np.isfinite(values).tolist(), strict=True)]
