"""The feature cache: what it recomputes, what it throws away, who may share it, and that results do not change."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finished_runs import report_of, same, weights
from safetensors.torch import save_file
from torch import nn

from llava.errors import InputError
from llava.train.parts.feature_cache import CachedEncoder, FeatureCache, weights_key
from llava.train.train import train

FEATURES = torch.arange(12.0).view(3, 4)
ROOM = 1e9


class Tower(nn.Module):
    """Counts the tiles it sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8 * 8 * 3, 6)
        self.seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return self.linear(images.flatten(1)).unsqueeze(1)


def tiles(*seeds: int) -> torch.Tensor:
    return torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def entry(folder: Path) -> Path:
    (path,) = folder.glob("??/*")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_put_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    FeatureCache(tmp_path, ROOM).put("abc", FEATURES.to(dtype))
    cache = FeatureCache(tmp_path, ROOM)
    found = cache.get("abc")
    assert found is not None and found.dtype == dtype and torch.equal(found, FEATURES.to(dtype))
    assert cache.get("abd") is None
    assert (cache.hits, cache.misses) == (1, 1)


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def damage_everything(path: Path) -> None:
    path.write_bytes(b"")


def damage_by_another_entry(path: Path) -> None:
    other = FeatureCache(path.parents[1] / "other", ROOM)
    other.put("xyz", FEATURES + 1)
    os.replace(entry(other.folder), path)


def damage_by_a_foreign_file(path: Path) -> None:
    save_file({"features": FEATURES}, path)


@pytest.mark.parametrize(
    "damage", [damage_half, damage_a_byte, damage_everything, damage_by_another_entry, damage_by_a_foreign_file]
)
def test_a_damaged_or_foreign_entry_is_not_trusted(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path, ROOM)
    cache.put("abc", FEATURES)
    damage(entry(tmp_path))
    assert cache.get("abc") is None
    assert "computed anew" in caplog.text and "abc.safetensors" in caplog.text
    cache.put("abc", FEATURES)
    assert cache.get("abc") is not None


def test_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    probe = FeatureCache(tmp_path / "probe", ROOM)
    probe.put("a0", FEATURES)
    size = entry(probe.folder).stat().st_size
    cache = FeatureCache(tmp_path / "cache", 4.5 * size)
    for number in range(4):
        cache.put(f"a{number}", FEATURES)
        path = next(cache.folder.glob(f"??/a{number}.safetensors"))
        os.utime(path, (1000 + number, 1000 + number))
    assert cache.get("a0") is not None  # now it is the newest
    cache.put("a4", FEATURES)
    assert {path.stem for path in cache.folder.glob("??/*")} == {"a0", "a3", "a4"} | {"a2"}
    for number in range(5, 30):
        cache.put(f"a{number}", FEATURES)
        assert sum(path.stat().st_size for path in cache.folder.glob("??/*")) <= 4.5 * size


def test_a_full_disk_ends_the_keeping_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path, ROOM)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for key in ("abc", "abd"):
        cache.put(key, FEATURES)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "No space left" in caplog.text
    assert not list(tmp_path.glob("??/*"))  # no half-written file is left either


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--mm_feature_cache .*file.* cannot be written to"):
        FeatureCache(tmp_path / "file", ROOM)


def fill(folder: Path, first: int) -> None:
    cache = FeatureCache(folder, 60_000)
    for number in range(first, first + 150):
        key = f"{number:04x}"
        cache.put(key, torch.full((50,), float(number)))
        found = cache.get(key)
        assert found is None or torch.equal(found, torch.full((50,), float(number)))


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Overlapping keys and a limit that makes both remove entries under the other's hands."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(tmp_path, first)) for first in (0, 75)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert not list(tmp_path.glob("??/*.part"))
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= 2 * 60_000


def test_only_unknown_tiles_are_encoded(tmp_path: Path) -> None:
    tower = Tower()
    encoder = CachedEncoder(tower.forward, [tower], FeatureCache(tmp_path, ROOM))
    first = encoder(tiles(1, 2, 1))
    assert tower.seen == 2
    assert torch.equal(encoder(tiles(1, 2, 1)), first) and tower.seen == 2
    again = CachedEncoder(tower.forward, [tower], FeatureCache(tmp_path, ROOM))
    mixed = again(tiles(3, 2))
    assert tower.seen == 3
    torch.testing.assert_close(mixed, Tower()(tiles(3, 2)))
    torch.testing.assert_close(first, Tower()(tiles(1, 2, 1)))


def test_other_pixels_or_weights_are_another_entry(tmp_path: Path) -> None:
    tower, other = Tower(), Tower()
    with torch.no_grad():
        other.linear.bias[0] += 1e-6
    assert weights_key([tower]) == weights_key([Tower()]) != weights_key([other])
    assert weights_key([tower]) != weights_key([tower, tower]) != weights_key([Tower().half()])
    cache = FeatureCache(tmp_path, ROOM)
    keys = {
        CachedEncoder(tower.forward, [module], cache).key(tile) for module in (tower, other) for tile in tiles(1, 2)
    }
    assert len(keys) == 4
    (tile,) = tiles(1)
    key = CachedEncoder(tower.forward, [tower], cache).key
    assert len({key(tile), key(tile.half()), key(tile.view(3, 4, 16)), key(tile.flip(0))}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zo", "regular"])
@pytest.mark.parametrize("parts", ["mm_language_model", "mm_language_model,mm_mlp_adapter"])
def test_a_run_gives_the_same_weights_with_a_cache(
    mode: str, parts: str, small_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    quick = {"mm_tunable_parts": parts, "trainer_mode": mode, "gradient_checkpointing": False, "max_steps": 4}
    for name in ("without", "filling", "filled"):
        cache = None if name == "without" else tmp_path / "cache"
        train(argv=small_run(**quick, output_dir=tmp_path / name, mm_feature_cache=cache))
    without, filling, filled = (weights(tmp_path / name) for name in ("without", "filling", "filled"))
    assert same(filling, filled)
    torch.testing.assert_close(filling, without, rtol=1e-4, atol=1e-5)
    first, second = (report_of(tmp_path / name)["feature_cache"] for name in ("filling", "filled"))
    assert first["misses"] > 0 and second == {"hits": first["hits"] + first["misses"], "misses": 0}


def test_a_tower_that_is_trained_is_never_cached(
    small_run: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
    cache = tmp_path / "cache"
    train(argv=small_run(mm_tunable_parts=parts, max_steps=1, mm_feature_cache=cache, output_dir=tmp_path / "run"))
    assert not (tmp_path / "cache").exists()
    assert "feature_cache" not in report_of(tmp_path / "run")
