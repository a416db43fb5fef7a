"""Parquet files and named data sets: the same records as JSON, with pictures in the rows, and what is refused."""

from __future__ import annotations

import datetime
import io
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from llava.errors import InputError
from llava.model.multimodal_encoder.siglip_encoder import SigLipImageProcessor
from llava.runs.same_run import hashes
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.loading import data_files, is_there, load_file, load_parts
from llava.samples.media import open_picture
from llava.samples.stored import StoredPicture

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
COLOURS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, format="PNG")
    return file.getvalue()


def messages(question: str, answer: str) -> list[dict[str, Any]]:
    asked = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def rows(stored: bool = True) -> list[dict[str, Any]]:
    """As sets for TRL have them: pictures in the rows, or their paths."""
    return [
        {
            "id": f"r{number}",
            "messages": messages(f"What colour has picture {number}?", colour),
            "images": [{"bytes": png(colour) if stored else None, "path": f"{colour}.png"}],
        }
        for number, colour in enumerate(COLOURS)
    ]


def parquet(folder: Path, name: str = "train-00000-of-00001", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row | changes for row in rows()]), folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def llava_json(folder: Path) -> Path:
    """The same as LLaVA JSON with files."""
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(png(colour))
    records = [
        {
            "id": f"r{number}",
            "image": f"{colour}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat colour has picture {number}?"},
                {"from": "gpt", "value": colour},
            ],
        }
        for number, colour in enumerate(COLOURS)
    ]
    (folder / "same.json").write_text(json.dumps(records))
    return folder / "same.json"


def dataset(path: str | Path, folder: Path) -> LazySupervisedDataset:
    flags = {
        "version": "qwen_1_5",
        "image_folder": str(folder),
        "image_processor": SigLipImageProcessor(size=(28, 28)),
        "image_aspect_ratio": "square",
    }
    return LazySupervisedDataset(
        str(path), AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_qwen"), SimpleNamespace(**flags)
    )


def assert_same(one: LazySupervisedDataset, other: LazySupervisedDataset) -> None:
    assert len(one) == len(other)
    assert one.lengths == other.lengths
    for number in range(len(other)):
        a, b = one[number], other[number]
        assert a["id"] == b["id"]
        assert a["input_ids"].tolist() == b["input_ids"].tolist() and a["labels"].tolist() == b["labels"].tolist()
        [(pixels, size, _)], [(as_before, as_size, _)] = a["image"], b["image"]
        assert size == as_size and torch.equal(pixels, as_before)


def all_forms(tmp_path: Path) -> dict[str, str]:
    """The data path of each way that the three rows can lie on a disk."""
    file = parquet(tmp_path / "set")
    features = datasets.Features(
        datasets.Dataset.from_list(rows()[:1]).features | {"images": datasets.List(datasets.Image())}
    )
    data = datasets.Dataset.from_list(rows(), features=features)
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"val": data}).save_to_disk(tmp_path / "splits")
    return {
        "parquet": str(file),
        "braces": str(file).replace("train-00000-of-00001", "{train-00000-of-00001}"),
        "folder": f"hf:{tmp_path}/set",
        "folder and split": f"hf:{tmp_path}/set:train",
        "saved": f"hf:{tmp_path}/saved",
        "saved with splits": f"hf:{tmp_path}/splits:val",
    }


def test_every_form_gives_the_samples_of_the_json(tmp_path: Path) -> None:
    wanted = dataset(llava_json(tmp_path), tmp_path)
    for path in all_forms(tmp_path).values():
        assert_same(dataset(path, tmp_path / "nowhere"), wanted)


def test_a_part_of_a_split(tmp_path: Path) -> None:
    parquet(tmp_path / "set")
    assert [record["id"] for record in load_file(f"hf:{tmp_path}/set:train[1:]")] == ["r1", "r2"]
    (tmp_path / "forms").mkdir()
    all_forms(tmp_path / "forms")
    assert [record["id"] for record in load_file(f"hf:{tmp_path}/forms/splits:val[1:]")] == ["r1", "r2"]
    assert [record["id"] for record in load_file(f"hf:{tmp_path}/forms/splits:val[:34%]")] == ["r0"]


def test_paths_without_bytes_are_below_the_image_folder(tmp_path: Path) -> None:
    wanted = dataset(llava_json(tmp_path), tmp_path)
    pq.write_table(pa.Table.from_pylist(rows(stored=False)), tmp_path / "paths.parquet")
    assert_same(dataset(tmp_path / "paths.parquet", tmp_path), wanted)


def test_bytes_alone_and_llava_columns(tmp_path: Path) -> None:
    wanted = dataset(llava_json(tmp_path), tmp_path)
    records = json.loads((tmp_path / "same.json").read_text())
    for record, colour in zip(records, COLOURS, strict=True):
        record["image"] = png(colour)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "bytes.parquet")
    assert_same(dataset(tmp_path / "bytes.parquet", tmp_path / "nowhere"), wanted)


def test_a_mixture_of_json_parquet_and_names(tmp_path: Path) -> None:
    file, names = llava_json(tmp_path), all_forms(tmp_path)
    mixture = tmp_path / "mixture.yaml"
    entries = [(str(file), "first:1"), (names["parquet"], "end:1"), (names["saved"], "all")]
    mixture.write_text(
        "datasets:\n" + "".join(f"  - json_path: {path}\n    sampling_strategy: {s}\n" for path, s in entries)
    )
    parts = load_parts(mixture)
    assert [[record["id"] for record in part] for _, part in parts] == [["r0"], ["r2"], ["r0", "r1", "r2"]]
    assert data_files(mixture) == [path for path, _ in entries]
    assert all(map(is_there, data_files(mixture)))
    assert len(dataset(mixture, tmp_path)) == 5 and dataset(mixture, tmp_path)[1]["id"] == "r2"


def test_pictures_take_no_memory_and_go_to_workers(tmp_path: Path) -> None:
    records = load_file(parquet(tmp_path / "set"))
    [picture] = records[2]["images"]
    assert isinstance(picture, StoredPicture)
    copy = pickle.loads(pickle.dumps(picture))
    assert len(pickle.dumps(picture.digest)) < 100 and copy == picture
    assert open_picture(copy)[0].getpixel((3, 3)) == (0, 0, 255)
    assert picture == load_file(tmp_path / "set" / "train-00000-of-00001.parquet")[2]["images"][0]
    assert picture != records[1]["images"][0]


def test_a_damaged_picture_is_named_by_file_row_and_place(tmp_path: Path) -> None:
    file = parquet(tmp_path / "set", images=[{"bytes": b"no picture", "path": None}])
    with pytest.raises(InputError) as error:
        _ = dataset(file, tmp_path)[1]
    told = str(error.value)
    assert told.startswith(f"{file}: record 'r1' (number 1): image images.0 of {file}, row 1, cannot be decoded")


def test_hashes_cover_texts_and_pictures_whatever_the_form(tmp_path: Path) -> None:
    forms = all_forms(tmp_path)
    named = [path for path in forms.values() if path.startswith("hf:")]
    assert len(named) == 4 and len(set(hashes(named))) == 1
    before = hashes([forms["parquet"], named[0]])
    parquet(tmp_path / "other", images=[{"bytes": png("black"), "path": "red.png"}])
    after = hashes([tmp_path / "other" / "train-00000-of-00001.parquet", f"hf:{tmp_path}/other"])
    assert before[0] != after[0] and before[1] != after[1]


def test_columns_that_json_does_not_have_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = parquet(tmp_path / "set", taken=datetime.datetime(2026, 11, 27))
    with caplog.at_level("WARNING", logger="llava"):
        records = load_file(file)
    assert f"{file}: columns that JSON does not have are not read: taken" in caplog.text
    assert "taken" not in records[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.parquet", r"none\.parquet does not exist; check --data_path"),
        ("folder.parquet", r"folder\.parquet is a folder or a device"),
        ("text.parquet", r"data file .*text\.parquet cannot be read: .*[Pp]arquet"),
        ("hf:", "give hf:NAME or hf:NAME:SPLIT, NAME a hub id or a folder"),
        ("hf:{}/nothing", "data file hf:.*nothing cannot be read: "),
        ("hf:{}/set:test", r"data file hf:.*set:test cannot be read: Unknown split \"test\".*train"),
        ("hf:{}/splits", "no split 'train'; allowed: val"),
        ("hf:{}/splits:train[1:]", "no split 'train'; allowed: val"),
        ("hf:{}/splits:val[1", r"splits:val\[1 cannot be read: "),
        ("mixture.yaml", "a mixture is for training alone; give one of its files"),
        ("hf:{}/saved:train", r"was saved without splits; give hf:.*saved$"),
        ("hf:no-one/no-such-set", "data file hf:no-one/no-such-set cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_one_line(path: str, message: str, tmp_path: Path) -> None:
    all_forms(tmp_path)
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "text.parquet").write_text("id\n")
    named = path.format(tmp_path) if path.startswith("hf:") else str(tmp_path / path)
    with pytest.raises(InputError, match=message) as error:
        load_file(named)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"tables need the package datasets: pip install -e '.\[data\]'"):
        load_file(file)
