"""Data files and mixtures against the conformance data, and the messages for files that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava.errors import InputError
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.loading import load_file, load_parts

GOLDEN = Path(__file__).parents[1] / "assets" / "golden" / "data"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "loading.json").read_text())["cases"]}
REFUSED = {
    "braces_with_space": r"/ beta\.json does not exist",
    "missing_file": r"none\.json does not exist; check --data_path",
    "yaml_unknown_strategy": r"alpha\.json: sampling_strategy 'middle:3' is not allowed; allowed: all, first:N",
    "yaml_no_number": r"beta\.json: sampling_strategy 'first' is not allowed",
    "yaml_bad_ext": r"notes\.txt: its name must end in \.json, \.jsonl or \.parquet",
}
BETTER = {
    "jsonl_directly": [f"b{i}" for i in range(7)],
    "braces_jsonl": [f"a{i}" for i in range(10)] + [f"b{i}" for i in range(7)],
    "yaml_blank_line": ["b0", "b1"],
    "yaml_zero": [],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The data folder with its own path written into the mixtures."""
    folder = tmp_path_factory.mktemp("data")
    for file in GOLDEN.iterdir():
        shutil.copy(file, folder)
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace("{ROOT}", str(folder)))
    return folder


def dataset(path: str, **flags) -> LazySupervisedDataset:
    return LazySupervisedDataset(path, tokenizer=None, data_args=SimpleNamespace(**flags))


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "ids" in c and n not in (*REFUSED, *BETTER)])
def test_records_and_lengths(root, name):
    case = CASES[name]
    read = dataset(case["data_path"].replace("{ROOT}", str(root)))
    assert [record["id"] for record in read.list_data_dict] == case["ids"]
    assert len(read) == case["count"]
    assert read.lengths == case["lengths"]
    assert read.modality_lengths == case["modality_lengths"]
    assert read.data_args.dataset_paths == [path.replace("{ROOT}", str(root)) for path in case["dataset_paths"]]
    mixed = dataset(case["data_path"].replace("{ROOT}", str(root)), early_mix_text=True)
    assert mixed.modality_lengths == case["modality_lengths_early_mix_text"]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(root, name):
    with pytest.raises(InputError, match=REFUSED[name]):
        load_parts(CASES[name]["data_path"].replace("{ROOT}", str(root)))


@pytest.mark.parametrize("name", BETTER)
def test_read_where_llava_next_fails_or_takes_all(root, name):
    parts = load_parts(CASES[name]["data_path"].replace("{ROOT}", str(root)))
    assert [record["id"] for _, records in parts for record in records] == BETTER[name]


def test_every_case_is_covered():
    tested = {name for name, case in CASES.items() if "ids" in case} | set(REFUSED) | set(BETTER)
    assert tested | {"yaml_random"} == set(CASES)


def test_random_is_seeded(root):
    def ids(seed):
        return [r["id"] for _, records in load_parts(root / "random.yaml", seed) for r in records]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    assert len(set(ids(1))) == CASES["yaml_random"]["count"]
    assert Counter(name[0] for name in ids(1)) == {"a": 4, "g": 7}


@pytest.mark.parametrize(
    ("strategy", "count"),
    [("first:2.5%", 1), ("end:33%", 5), ("random:7.7%", 2), ("end:0", 0), ("first:0%", 0), ("all", 13), ("end:99", 13)],
)
def test_amounts(root, tmp_path, strategy, count):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - json_path: {root}/gamma.json\n    sampling_strategy: '{strategy}'\n")
    assert len(load_parts(mixture)[0][1]) == count


@pytest.mark.parametrize("strategy", ["all:3", "first:-1", "first:x%", "random", "", "First:3", "end:1.5"])
def test_wrong_strategies(root, tmp_path, strategy):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - json_path: {root}/gamma.json\n    sampling_strategy: '{strategy}'\n")
    with pytest.raises(InputError, match=r"gamma\.json: sampling_strategy .* allowed: all, first:N, end:N, random:N"):
        load_parts(mixture)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"id": 1}', r"a\.json must hold one JSON array of records, but holds an object"),
        ("a.json", "[\n{},\n]", r"a\.json, line 3, column 1"),
        ("a.json", "[{}, 3]", r"a\.json: record 1 is a number"),
        ("a.json", "", r"a\.json, line 1"),
        (
            "a.json",
            "{}\n{}\n",
            r"a\.json, line 2, .* Extra data \(a file with a record a line is named",
        ),
        ("a.jsonl", "{}\n{} {}\n", r"a\.jsonl, line 2, column 4: Extra data$"),
        ("a.jsonl", '{"id": 1}\n\n{"id": \n', r"a\.jsonl, line 3"),
        ("a.jsonl", "{}\n[1]\n", r"a\.jsonl, line 2: an array"),
        ("a.yaml", "datasets: [\n  - x: {", r"a\.yaml, line"),
        ("a.yaml", "files: []", r"a\.yaml needs a list `datasets:`"),
        ("a.yaml", "datasets:\n  - path: x.json", r"a\.yaml: dataset 0 has no json_path"),
        ("a.csv", "id", r"a\.csv: its name must end in"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, message):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_parts(file)


def test_not_utf_8_and_folder_and_nothing(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'["\xff"]')
    with pytest.raises(InputError, match=r"a\.json is not UTF-8"):
        load_file(file)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json is a folder"):
        load_file(tmp_path / "folder.json")
    with pytest.raises(InputError, match="--data_path is not set"):
        load_parts(None)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match=r"pipe\.json is a folder or a device"):
        load_file(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [2021-13-45]", "not valid YAML: month must be in"),
        ("datasets:\n  - json_path: 'x'\n    sampling_strategy: first:" + "9" * 5000, "x: its name must end in"),
        ('datasets:\n  - json_path: "\\0.json"', "cannot be read: embedded null byte"),
        ("datasets:\n  - json_path: " + "x" * 3000 + ".json", "File name too long"),
    ],
)
def test_mixtures_that_nobody_can_read(text, message, tmp_path):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_parts(tmp_path / "m.yaml")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_mixture_with_keys_of_any_kind_and_numbers_of_any_length(root, tmp_path):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - json_path: {root}/gamma.json\n    1: 2\n    null: 3\n    weight: 1\n")
    assert load_parts(mixture)[0][1]
    mixture.write_text(f"datasets:\n  - json_path: {root}/gamma.json\n    sampling_strategy: first:{'9' * 5000}\n")
    with pytest.raises(InputError, match=r"sampling_strategy 'first:9+ is not allowed"):
        load_parts(mixture)


def test_unknown_keys_of_a_mixture_are_reported(root, tmp_path, caplog):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"datasets:\n  - json_path: {root}/gamma.json\n    weight: 3\n")
    with caplog.at_level("WARNING", logger="llava"):
        load_parts(mixture)
    assert "weight" in caplog.text
