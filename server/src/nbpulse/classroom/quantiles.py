"""Quantiles as the database's percentile_cont makes them: between two values in proportion. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def find_quantile(ordered: Sequence[float], share: float) -> float | None:
    """Of rising values the one at `share` (0..1) of the way, between two of them in proportion; None of none."""
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)


def find_quartiles(values: Sequence[float]) -> list[float] | None:
    """The three quartiles of values in any order; None of none."""
    ordered = sorted(values)
    found = (find_quantile(ordered, share) for share in (0.25, 0.5, 0.75))
    return [one for one in found if one is not None] or None
