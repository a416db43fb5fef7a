"""Small drawn copies of the public sets in the layouts they are published in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

SPLITS = ("train", "val", "test")


def png(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture file that differs from those of other numbers."""
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 99)).save(file, format="PNG")
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture()
def make_br35h(tmp_path: Path) -> Callable[[int], Path]:
    """Writes `each` pictures to yes/ and no/ of the folder set/, with what the archive has besides."""

    def make(each: int) -> Path:
        folder = tmp_path / "archive" / "set"
        for number in range(each):
            suffix = ("png", "PNG", "Png")[number % 3]
            write(folder / "yes" / f"y{number}.{suffix}", png(number))
            write(folder / "no" / f"no {number}.{suffix}", png(1000 + number))
        write(folder / "pred" / "pred0.png", png(5000))
        write(folder / "yes" / "Thumbs.db", b"")
        return folder

    return make


def we_math_records(count: int, questions_a_picture: int) -> list[dict]:
    """Question k is about picture k // questions_a_picture; each has a path of its own."""
    return [
        {
            "ID": f"2steps_{number}",
            "split": "testmini",
            "question": f" How long is side {number}? ",
            "option": f"A. {number}.5 cm; B. {number} cm;C. {number}, 2 cm ; D. No correct answer",
            "answer": "ABC"[number % 3],
            "image_path": f"2steps/image/{number}-1.png",
            "key": f"2steps_{1 + number % 2}",
            "picture": png(number // questions_a_picture),
        }
        for number in range(count)
    ]


def chartqa_records(per_split: int) -> dict[str, list[dict]]:
    """Two questions a chart, one by a person and one by a program."""
    return {
        split: [
            {
                "imgname": f"{split}{number // 2}.png",
                "query": f"What is {split} {number}?",
                "label": f"{number}%",
                "kind": ("human", "augmented")[number % 2],
                "picture": png(1000 * SPLITS.index(split) + number // 2),
            }
            for number in range(per_split)
        ]
        for split in SPLITS
    }


@pytest.fixture()
def make_we_math(tmp_path: Path) -> Callable[..., Path]:
    """Writes data/testmini.json with its pictures; returns the folder above."""

    def make(count: int, questions_a_picture: int = 1, change: dict | None = None) -> Path:
        records = we_math_records(count, questions_a_picture)
        for record in records:
            write(tmp_path / "We-Math" / "data" / record["image_path"], record.pop("picture"))
        records[count // 2].update(change or {})
        write(tmp_path / "We-Math" / "data" / "testmini.json", json.dumps(records).encode())
        return tmp_path / "We-Math"

    return make


@pytest.fixture()
def make_chartqa(tmp_path: Path) -> Callable[[int], Path]:
    """Writes the three splits with JSON files and pictures into `ChartQA Dataset`."""

    def make(per_split: int) -> Path:
        folder = tmp_path / "ChartQA Dataset"
        for split, records in chartqa_records(per_split).items():
            for record in records:
                write(folder / split / "png" / record["imgname"], record["picture"])
            for kind in ("human", "augmented"):
                own = [{k: r[k] for k in ("imgname", "query", "label")} for r in records if r["kind"] == kind]
                write(folder / split / f"{split}_{kind}.json", json.dumps(own).encode())
        return folder

    return make


@pytest.fixture()
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], object]:
    """Makes the set of a hub id as a `datasets.DatasetDict` with its pictures inside."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()

    def make(task: str, count: int) -> object:
        if task == "we_math":
            rows = {"testmini": we_math_records(count, 2)}
            column = "image_path"
        else:
            rows, column = chartqa_records(count), "image"
            for row in (row for split in rows.values() for row in split):
                row["label"] = [row["label"]]
                row["human_or_machine"] = int(row.pop("kind") == "augmented")
        for row in (row for split in rows.values() for row in split):
            row[column] = {"bytes": row.pop("picture"), "path": None}
        made = {split: datasets.Dataset.from_list(own) for split, own in rows.items()}
        return datasets.DatasetDict({k: v.cast_column(column, datasets.Image()) for k, v in made.items()})

    return make


@pytest.fixture()
def parquet(tables: Callable[[str, int], object], tmp_path: Path) -> Callable[[str, int], Path]:
    """Writes data/SPLIT-00000-of-00001.parquet for each split; returns the folder above."""

    def make(task: str, count: int) -> Path:
        folder = tmp_path / "parquet" / "data"
        folder.mkdir(parents=True)
        for split, data in tables(task, count).items():
            data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return folder.parent

    return make


@pytest.fixture()
def make_snippets(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a folder with `each` sentences of either kind."""

    def make(each: int) -> Path:
        lines = [f"{k}\t{1.5 if k % 2 else -2.25}\tSentence number {k}.\r\n" for k in range(2 * each)]
        write(tmp_path / "sentences" / "movieReviewSnippets_GroundTruth.txt", "".join(lines).encode())
        return tmp_path / "sentences"

    return make
