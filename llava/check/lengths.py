"""How long samples are: a few numbers, and a histogram of bars for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BINS = 12
BAR = 40  # characters of the longest bar


def summarise(lengths: Sequence[int], limit: int) -> dict[str, Any]:
    """Numbers about lengths in tokens: records, min, median, percentile_95, max, limit, cut (over it), histogram.

    The percentiles are lengths that occur: the smallest that at least half (95 %) of the records do not exceed. Bins of
    the histogram are {"from", "to", "records"}, both ends included.
    """
    ordered = sorted(lengths)
    return {
        "limit": limit,
        "records": len(ordered),
        "min": ordered[0],
        "median": _percentile(ordered, 50),
        "percentile_95": _percentile(ordered, 95),
        "max": ordered[-1],
        "cut": sum(length > limit for length in ordered),
        "histogram": histogram(ordered),
    }


def _percentile(ordered: Sequence[int], percent: int) -> int:
    return ordered[max(-(-len(ordered) * percent // 100), 1) - 1]


def histogram(ordered: Sequence[int]) -> list[dict[str, int]]:
    """At most `BINS` bins of one width from the shortest to the longest."""
    first, last = ordered[0], ordered[-1]
    width = -(-(last - first + 1) // BINS)
    bins = [{"from": start, "to": start + width - 1, "records": 0} for start in range(first, last + 1, width)]
    for length in ordered:
        bins[(length - first) // width]["records"] += 1
    return bins


def bars(bins: Sequence[dict[str, int]], limit: int) -> list[str]:
    """A line for each bin; the one in which lengths go over the limit says so."""
    most = max(entry["records"] for entry in bins)
    wide = len(str(bins[-1]["to"]))
    lines = []
    for entry in bins:
        count = entry["records"]
        bar = "█" * (max(round(BAR * count / most), 1) if count else 0)
        mark = "  <- --model_max_length" if entry["from"] <= limit < entry["to"] else ""
        lines.append(f"{entry['from']:>{wide}} - {entry['to']:>{wide}}  {bar} {count}{mark}")
    return lines
