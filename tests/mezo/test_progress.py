"""What a run shows of its progress: windows, root mean squares, and the file of its probes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llava.mezo.curvature import Landscape, Probe
from llava.mezo.errors import InputError
from llava.mezo.progress import PROBES, PROBES_FILE, Probes, rms_report, windows


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (3, [3]), (9, [9]), (10, [5, 5]), (23, [5, 6, 6, 6]), (100, [25] * 4)]
)
def test_windows_have_all_values_once(count: int, sizes: list[int]) -> None:
    parts = windows(range(count), 5, 4)
    assert [len(part) for part in parts] == sizes
    assert [value for part in parts for value in part] == list(range(count))


def test_root_mean_squares() -> None:
    sizes = [(step, 3.0 if step < 25 else (-1.0) ** step * (4.0 + (step % 2) * 2.0)) for step in range(50)]
    assert rms_report([]) == []
    first, second = rms_report(sizes)
    assert first == {"step": 12, "rms": 3.0}
    assert second["step"] == 37 and second["rms"] == pytest.approx(math.sqrt((13 * 36 + 12 * 16) / 25))


def test_probes_are_kept_and_reported(tmp_path: Path) -> None:
    """What was measured from a step on goes when the run goes on before it."""
    kept = Probes(tmp_path / PROBES_FILE)
    kept.take_up(100)
    assert kept.report(1e-3) == []
    for step in range(0, 5 * 4 * PROBES[0], 5):
        kept.found[step] = [Probe(1.0 + step, 0.1 * step, 1 / 3), Probe(2.0, 3.0, -7.0)]
    kept.save()
    again = Probes(tmp_path / PROBES_FILE)
    again.take_up(5 * 2 * PROBES[0] + 1)
    assert list(again.found) == list(range(0, 5 * 2 * PROBES[0] + 1, 5))
    assert all(again.found[step] == kept.found[step] for step in again.found)
    rows = again.report(1e-3)
    assert [row["steps"] for row in rows] == [[0, 45], [50, 100]] and [row["probes"] for row in rows] == [10, 11]
    landscape = Landscape([kept.found[step] for step in range(0, 50, 5)])
    assert rows[0]["loss"] == landscape.loss and rows[0]["rounding_at_most"] == landscape.rounding(1e-3)
    assert rows[0]["signal"] == {"value": landscape.signal.value, "error": landscape.signal.error}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"probes": [{"step": 1}]}', '{"probes": [{"step": 0, "batches": [[1, 2]]}]}'):
        (tmp_path / PROBES_FILE).write_text(text)
        with pytest.raises(InputError, match=rf"{PROBES_FILE} is damaged .*remove it"):
            Probes(tmp_path / PROBES_FILE).take_up(1)
