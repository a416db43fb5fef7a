"""The demo sets: reproducible, balanced, without overlap, small enough to ship."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from llava.data.prompts import SCAN
from llava.errors import InputError
from llava.toy import charts, demo, figures, scans
from llava.toy.drawing import SIZE, fingerprint, sample_rng
from llava.toy.records import write_split

SIZES = {"train": 40, "val": 10, "test": 20}


@pytest.fixture(scope="module", params=list(demo.SETS))
def splits(request):
    return request.param, demo.split_samples(request.param, seed=42, sizes=SIZES)


def test_equal_seeds_draw_equal_sets(splits):
    name, drawn = splits
    again = demo.split_samples(name, seed=42, sizes=SIZES)
    for split, samples in drawn.items():
        assert [fingerprint(s.image) for s in samples] == [fingerprint(s.image) for s in again[split]]
        assert [s.rounds for s in samples] == [s.rounds for s in again[split]]


def test_other_seeds_draw_other_pictures(splits):
    name, drawn = splits
    other = demo.split_samples(name, seed=43, sizes=SIZES)
    mine = {fingerprint(s.image) for s in drawn["test"]}
    assert mine.isdisjoint(fingerprint(s.image) for s in other["test"])


def test_no_picture_is_drawn_twice(splits):
    _, drawn = splits
    keys = [fingerprint(s.image) for samples in drawn.values() for s in samples]
    assert len(keys) == len(set(keys))


def test_pictures_have_the_tower_size(splits):
    _, drawn = splits
    assert {s.image.size for samples in drawn.values() for s in samples} == {(SIZE, SIZE)}


def test_repeated_pictures_are_replaced(monkeypatch):
    plain = Image.new("L", (SIZE, SIZE))

    def draw(rng, index):
        picture = plain.copy()
        picture.putpixel((0, 0), int(rng.integers(4)))
        return scans.sample(picture, SCAN, "Yes", "scan")

    monkeypatch.setitem(demo.SETS, "few", demo.DemoSet(draw, 9, {"train": 2, "test": 2}))
    drawn = demo.split_samples("few", seed=0)
    assert len({fingerprint(s.image) for samples in drawn.values() for s in samples}) == 4


def test_a_set_of_too_few_pictures_is_an_error(monkeypatch):
    same = scans.draw(sample_rng(0, 0), 0)
    monkeypatch.setitem(demo.SETS, "one", demo.DemoSet(lambda rng, index: same, 9, {"train": 2}))
    with pytest.raises(RuntimeError, match="sample 1 "):
        demo.split_samples("one", seed=0)


def test_scans_are_balanced_and_ask_the_studys_question():
    for samples in demo.split_samples("scan", seed=42, sizes=SIZES).values():
        counts = Counter(s.rounds[0].answer for s in samples)
        assert counts["Yes"] == counts["No"] > 0
        assert {s.rounds[0].prompt for s in samples} == {
            "<image>\nAre there signs of a tumor in the image? Yes or No?\nAnswer:"
        }


def test_a_mass_brightens_a_scan_and_nothing_else_differs_as_much():
    """Scans of both kinds from the same random numbers: the mass is a bright patch of many pixels."""
    for number in range(20):
        with_mass = np.asarray(scans.draw_scan(sample_rng(3, number), tumor=True).image, dtype=float)
        without = np.asarray(scans.draw_scan(sample_rng(3, number), tumor=False).image, dtype=float)
        assert ((with_mass - without) > 30).sum() >= 12


def test_mean_brightness_does_not_give_the_answer_away():
    means = {True: [], False: []}
    for number in range(120):
        for tumor in means:
            image = scans.draw_scan(sample_rng(4, number, int(tumor)), tumor).image
            means[tumor].append(np.asarray(image, dtype=float).mean())
    threshold = np.median(means[True] + means[False])
    hits = (np.array(means[True]) > threshold).mean() / 2 + (np.array(means[False]) <= threshold).mean() / 2
    assert hits < 0.75


def test_figures_list_their_answer_among_the_options():
    kinds = Counter()
    for number in range(60):
        item = figures.draw(sample_rng(5, number), number).rounds[0]
        question, options = item.prompt.removeprefix("<image>\n").removesuffix("\nAnswer:").split(" Options: ")
        head, last = options.rsplit(" or ", 1)
        listed = [*head.split("; "), last]
        assert question.endswith("?")
        assert len(listed) == len(set(listed)) == 3
        assert item.answer in listed
        kinds[item.kind] += 1
    assert kinds == {"angle": 20, "sides": 20, "shaded": 20}


def test_shaded_part_is_as_large_as_the_answer():
    parts = {"1/4": 0.25, "1/2": 0.5, "3/4": 0.75}
    for number in range(2, 62, 3):
        sample = figures.draw(sample_rng(6, number), number)
        pixels = np.asarray(sample.image).astype(int)
        coloured = (np.ptp(pixels, axis=2) > 60).sum()
        columns = np.flatnonzero((pixels.min(axis=2) < 200).any(axis=0))
        area = np.pi * ((columns[-1] - columns[0] - 2) / 2) ** 2  # within the black outline
        assert coloured / area == pytest.approx(parts[sample.rounds[0].answer], abs=0.12)


def test_bars_are_as_high_as_the_answer():
    checked = 0
    for number in range(0, 40, 2):
        sample = charts.draw(sample_rng(7, number), number)
        item = sample.rounds[0]
        name = item.prompt.split(" bar?")[0].split()[-1]
        pixels = np.asarray(sample.image).astype(int)
        bar = np.abs(pixels - np.array(charts.COLOURS[name])).max(axis=2) < 6
        top = np.flatnonzero(bar.any(axis=1))[0]
        assert charts.height_of(int(item.answer)) == pytest.approx(top, abs=1.1)
        checked += 1
    assert checked == 20


def test_charts_ask_as_the_study_does():
    prompts = [charts.draw(sample_rng(8, n), n).rounds[0].prompt for n in range(10)]
    assert all(
        p.startswith("<image>\nFind the answer in the image for: ") and p.endswith("?\nAnswer:") for p in prompts
    )


def test_command_writes_llava_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(demo.SETS, "chart", demo.DemoSet(charts.draw, 3, {"train": 4, "val": 2, "test": 2}))
    demo.main(["--output", str(tmp_path), "--sets", "chart"])
    assert "4 records" in capsys.readouterr().out
    records = json.loads((tmp_path / "chart" / "train.json").read_text())
    assert [r["id"] for r in records] == [f"chart_train_{n:05d}" for n in range(4)]
    for record in records:
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"]
        with Image.open(tmp_path / "chart" / record["image"]) as image:
            assert image.size == (SIZE, SIZE)


def test_files_are_small(tmp_path):
    samples = demo.split_samples("scan", seed=42, sizes={"train": 20})["train"]
    write_split(tmp_path, "train", "scan", samples)
    sizes = [file.stat().st_size for file in (tmp_path / "images").iterdir()]
    assert sum(sizes) / len(sizes) < 1400


@pytest.mark.parametrize(("arguments", "message"), [(["--sets", "xray"], "xray"), (["--seed", "-1"], "-1")])
def test_wrong_flags_are_named(tmp_path, refused, arguments, message):
    assert message in refused(demo.main, ["--output", str(tmp_path / "x"), *arguments])
    assert not (tmp_path / "x").exists()


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*cannot write"):
        write_split(tmp_path / "file", "train", "scan", [scans.draw(sample_rng(0, 0), 0)])
