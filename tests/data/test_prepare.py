"""The command: what a prepared folder holds, that it is all or nothing, and which flags are refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llava.data import prepare
from llava.samples.loading import load_file

SPLITS = ("train", "val", "test")


def run(task: str, source: Path | str, output: Path, *flags: str) -> dict:
    prepare.main([task, "--source", str(source), "--output", str(output), *flags])
    return json.loads((output / "manifest.json").read_text())


def sizes(train: int, val: int, test: int) -> list[str]:
    return ["--train", str(train), "--val", str(val), "--test", str(test)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def error_of(refused: Callable[..., str]) -> Callable[..., str]:
    """The one line of an error, for the words of a command."""

    def line_of(*words: str) -> str:
        (line,) = (line for line in refused(prepare.main, list(words)).splitlines() if line.startswith("error: "))
        return line

    return line_of


@pytest.fixture()
def source(request, make_br35h, make_we_math, make_chartqa, make_snippets) -> Path:
    makers = {
        "br35h": lambda: make_br35h(12),
        "we_math": lambda: make_we_math(30, 2),
        "chartqa": lambda: make_chartqa(12),
        "snippets": lambda: make_snippets(12),
    }
    return makers[request.param]()


TASKS = pytest.mark.parametrize(
    ("task", "source"), [(task, task) for task in prepare.SETS], indirect=["source"], ids=list(prepare.SETS)
)


@TASKS
def test_equal_seeds_give_equal_bytes(task, source, tmp_path):
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        run(task, source, tmp_path / name, *sizes(8, 4, 6), "--seed", seed)
    first, again, other = (content(tmp_path / name) for name in "abc")
    assert first == again
    assert first["train.json"] != other["train.json"]
    texts = "".join(data.decode() for name, data in first.items() if name.endswith(".json"))
    assert str(tmp_path) not in texts.replace(str(source), "")


@TASKS
def test_a_prepared_folder_can_be_read_and_verified(task, source, tmp_path, capsys):
    output = tmp_path / "new" / "out"
    manifest = run(task, source, output, *sizes(8, 4, 6), "--max-side", "20")
    assert manifest["task"] == task and manifest["source"] == str(source) and manifest["max_side"] == 20
    for split, size in zip(SPLITS, (8, 4, 6), strict=True):
        part = manifest["splits"][split]
        records = load_file(output / f"{split}.json")
        assert [r["id"] for r in records] == [f"{task}_{split}_{n:05d}" for n in range(size)]
        assert part["records"] == size == sum(part["kinds"].values())
        assert part["kinds"] == Counter(r["kind"][0] for r in records)
        assert part["answers"]["most_common"] == Counter(r["conversations"][1]["value"] for r in records)
        assert part["sha256"] == hashlib.sha256((output / f"{split}.json").read_bytes()).hexdigest()
        pictures = sorted({r["image"] for r in records if "image" in r})
        lines = [f"{hashlib.sha256((output / p).read_bytes()).hexdigest()}  {p}\n" for p in pictures]
        assert part["images"] == len(pictures)
        assert part["images_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
        assert {Image.open(output / p).size for p in pictures} == ({(20, 15)} if task != "snippets" else set())
    metric = {"we_math": "EVAL_METRIC=choice ", "chartqa": "EVAL_METRIC=relaxed "}.get(task, "")
    told = capsys.readouterr().out
    assert f"{output}/train.json: 8 records" in told
    assert (
        f"DATA_PATH={output}/train.json IMAGE_FOLDER={output} EVAL_DATA={output}/test.json {metric}"
        "bash scripts/train/mezo_onevision_si.sh 0.5b\n"
    ) in told
    assert sorted(p.name for p in output.parent.iterdir()) == ["out"]


@pytest.mark.parametrize(("task", "source"), [(t, t) for t in ("br35h", "we_math", "chartqa")], indirect=["source"])
def test_pictures_are_shared_within_a_split_alone(task, source, tmp_path):
    run(task, source, tmp_path / "out", *sizes(10, 4, 6))
    seen: Counter[bytes] = Counter(p.read_bytes() for p in (tmp_path / "out" / "images").iterdir())
    assert set(seen.values()) == {1}
    uses = [
        Counter(r["image"] for r in json.loads((tmp_path / "out" / f"{split}.json").read_text())) for split in SPLITS
    ]
    assert sum(map(len, uses)) == len(seen)
    assert (max(max(use.values()) for use in uses) == 1) == (task == "br35h")


def test_small_sets_keep_the_studys_ratios(make_br35h, tmp_path, capsys):
    manifest = run("br35h", make_br35h(30), tmp_path / "out")
    parts = manifest["splits"]
    assert [parts[split]["kinds"] for split in SPLITS] == [{"No": n, "Yes": n} for n in (12, 6, 12)]
    assert manifest["sizes"] == {"train": 1000, "val": 500, "test": 1000} and manifest["source_records"] == 60
    assert "taking --train 12 --val 6 --test 12" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "number"), [([], 5), (["--prompt", "1"], 1), (["--prompt", "7"], 7)])
def test_the_prompt_is_chosen_by_its_number(make_br35h, tmp_path, flags, number):
    manifest = run("br35h", make_br35h(10), tmp_path / "out", *sizes(2, 2, 2), *flags)
    expected = prepare.br35h.PROMPTS[number - 1]
    assert manifest["prompt"] == expected
    records = json.loads((tmp_path / "out" / "val.json").read_text())
    assert {r["conversations"][0]["value"] for r in records} == {expected}


def test_without_a_source_the_hub_is_asked(tables, monkeypatch, tmp_path):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or tables("we_math", 34))
    prepare.main(["we_math", "--output", str(tmp_path / "out")])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert asked == [("We-Math/We-Math",)] and manifest["source"] == "We-Math/We-Math"
    assert [manifest["splits"][split]["records"] for split in SPLITS] == [20, 4, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xray"], "xray: unknown set; choose one of br35h, we_math, chartqa, snippets"),
        (["br35h"], "--source is not set: br35h is on kaggle.com/datasets/ahmedhamada0/brain-tumor-detection"),
        (["br35h", "--prompt", "0"], "--prompt 0: br35h has prompts 1 to 7"),
        (["br35h", "--prompt", "8"], "--prompt 8: br35h has prompts 1 to 7"),
        (["chartqa", "--prompt", "1"], "--prompt 1: chartqa has one prompt"),
        (["we_math", "--max-side", "0"], "--max-side 0: must be at least 1"),
        (["we_math", "--val", "0"], "--val 0: must be at least 1"),
        (["we_math", "--seed", "-1"], "--seed -1: must be at least 0"),
        (["we_math", "--source", "no/such/folder"], "--source no/such/folder: no such folder"),
    ],
)
def test_wrong_flags_are_named(tmp_path, error_of, arguments, message):
    assert message in error_of(*arguments, "--output", str(tmp_path / "out"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "folder", "out.part"])
def test_nothing_is_overwritten(make_br35h, tmp_path, error_of, name):
    folder = make_br35h(4)
    if name == "file":
        (tmp_path / name).write_text("mine")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    before = content(tmp_path)
    output = tmp_path / name.removesuffix(".part")
    error = error_of("br35h", "--source", str(folder), "--output", str(output))
    assert str(output) in error and "remove it first" in error
    assert content(tmp_path) == before


def test_an_empty_folder_is_used(make_br35h, tmp_path):
    (tmp_path / "out").mkdir()
    run("br35h", make_br35h(6), tmp_path / "out", *sizes(2, 2, 2))
    assert (tmp_path / "out" / "test.json").exists()


@pytest.mark.parametrize("damage", [b"broken", None], ids=["broken", "missing"])
def test_a_bad_picture_is_named_and_nothing_stays(make_chartqa, tmp_path, error_of, damage):
    folder = make_chartqa(2)
    file = folder / "test" / "png" / "test0.png"
    file.unlink() if damage is None else file.write_bytes(damage)
    before = content(tmp_path)
    error = error_of("chartqa", "--source", str(folder), "--output", str(tmp_path / "out"))
    assert "json, record 0: picture " in error and str(file) in error
    assert ("cannot be read (No such file" if damage is None else "cannot be used: it is no picture") in error
    assert content(tmp_path) == before


def test_an_interrupted_run_leaves_nothing(make_br35h, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_manifest", interrupted)
    folder = make_br35h(6)
    with pytest.raises(KeyboardInterrupt):
        run("br35h", folder, tmp_path / "out", *sizes(2, 2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_a_full_disk_is_one_line(make_br35h, tmp_path, error_of, monkeypatch):
    def full(self, data):
        raise OSError(28, os.strerror(28))

    folder = make_br35h(6)
    monkeypatch.setattr(Path, "write_bytes", full)
    error = error_of("br35h", "--source", str(folder), "--output", str(tmp_path / "out"), *sizes(2, 2, 2))
    assert f"--output {tmp_path / 'out'} cannot be written" in error and "No space left" in error
    assert not (tmp_path / "out.part").exists()
