"""What is read from the published layouts, and which records are refused."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from llava.data.public_sets import br35h, chartqa, snippets, we_math
from llava.errors import InputError

WE_MATH = [
    ("A. 2; B. 3; C. No correct answer", ["2", "3", "No correct answer"]),
    ("A. 300, 400;B. 400, 300;C. 1.5 cm.; D. ① ", ["300, 400", "400, 300", "1.5 cm.", "①"]),
    ("A. F;    B. D;    C. B;    D. I", ["F", "D", "B", "I"]),
    ("A. B; B. C; C. A", ["B", "C", "A"]),
    ("A. ①; ③; B. ②; ④", ["①; ③", "②; ④"]),
    ("A. ①;B．②;C. ③", ["①", "②", "③"]),
    ("A. 45° B. 60° ;C. 120°", ["45°", "60°", "120°"]),
    ("A. 5dm right;; B. 5dm left;; C. No.", ["5dm right", "5dm left", "No."]),
    ("A. angle ∠AB;E.; B. angle ∠AB;C.; C. none", ["angle ∠ABE.", "angle ∠ABC.", "none"]),
    ("A. then north to ;C.  ;B. then to ;C.  ;C. to ;C. ;D. No", ["then north to C.", "then to C.", "to C.", "No"]),
    ("A. around point ;O.;B. No.; F. No correct answer", ["around point O.", "No.", "No correct answer"]),
]


@pytest.mark.parametrize(("text", "options"), WE_MATH)
def test_options_are_split_at_their_letters(text, options):
    found = we_math.split_options(text, "q1")
    assert list(found.values()) == options
    assert list(found)[:-1] == [chr(ord("A") + k) for k in range(len(options) - 1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2; 3",
        "A. 2",
        "B. 2; C. 3; D. 4",
        "A. 1; C. 2; D. 3",
        "A. 1; A. 2; B. 3",
        "A. 1; B. 2; B. 3; C. 4",
        "x; A. 1; B. 2",
    ],
)
def test_other_options_are_refused(text):
    with pytest.raises(InputError, match=r"^q1: options must be .* in order, found"):
        we_math.split_options(text, "q1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"option": "2 or 3"}, "options must be"),
        ({"answer": "E"}, "the answer is 'E', but the options are A, B, C, D"),
        ({"answer": None}, "`answer` must be a text"),
        ({"question": "<image> is what?"}, "must not contain <image>"),
    ],
)
def test_a_bad_question_is_named(make_we_math, change, message):
    with pytest.raises(InputError, match=f"^2steps_2/2steps_1: .*{message}"):
        we_math.load(str(make_we_math(4, change=change)), we_math.PROMPT, 0)


def test_we_math_asks_with_shuffled_options_for_their_text(make_we_math):
    items = we_math.load(str(make_we_math(9)), we_math.PROMPT, 1).items
    start, end = "<image>\nHow long is side 4? Options: ", "\nAnswer:"
    assert items[4].prompt.startswith(start) and items[4].prompt.endswith(end)
    head, last = items[4].prompt[len(start) : -len(end)].split(" or ")
    assert sorted([*head.split("; "), last]) == ["4 cm", "4, 2 cm", "4.5 cm", "No correct answer"]
    assert [item.answer for item in items[3:6]] == ["3.5 cm", "4 cm", "5, 2 cm"]
    places = {item.prompt[: -len(end)].endswith("No correct answer") for item in items}
    assert places == {True, False}


def test_options_are_shuffled_by_the_seed(make_we_math):
    folder = str(make_we_math(9))
    first, again, other = ([i.prompt for i in we_math.load(folder, we_math.PROMPT, s).items] for s in (1, 1, 2))
    assert first == again != other


def without_readers(found):
    return [(item.name, item.prompt, item.answer, item.kind, item.split, item.picture()) for item in found.items]


def test_parquet_files_of_we_math_are_the_same_set(make_we_math, parquet):
    from_json = we_math.load(str(make_we_math(6, 2)), we_math.PROMPT, 3)
    from_parquet = we_math.load(str(parquet("we_math", 6)), we_math.PROMPT, 3)
    assert without_readers(from_json) == without_readers(from_parquet)
    assert from_json.records == from_parquet.records == 6


def test_parquet_files_of_chartqa_are_the_same_set(make_chartqa, parquet):
    from_json = chartqa.load(str(make_chartqa(4)), chartqa.PROMPT, 3)
    from_parquet = chartqa.load(str(parquet("chartqa", 4)), chartqa.PROMPT, 3)
    assert sorted(row[1:] for row in without_readers(from_json)) == sorted(
        row[1:] for row in without_readers(from_parquet)
    )
    assert ("train_human.json, record 1", "<image>\nFind the answer in the image for: What is train 2?\nAnswer:") in [
        (item.name, item.prompt) for item in from_json.items
    ]


def test_a_hub_id_is_loaded_by_its_name(tables, monkeypatch):
    import datasets

    asked = []
    data = tables("chartqa", 2)
    data["validation"] = data.pop("val")  # copies on the hub use either name
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or data)
    found = chartqa.load("HuggingFaceM4/ChartQA", chartqa.PROMPT, 0)
    assert [item.split for item in found.items] == ["train", "train", "val", "val", "test", "test"]
    assert asked == [("HuggingFaceM4/ChartQA",)]


def test_a_hub_id_that_fails_is_named(tables, monkeypatch):
    import datasets

    def fail(name):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"^--source We-Math/We-Math: .*\(ConnectionError: no network\)$"):
        we_math.load("We-Math/We-Math", we_math.PROMPT, 0)


def test_a_set_with_other_columns_is_refused(parquet):
    with pytest.raises(
        InputError, match=r"split testmini: no column query, label, human_or_machine, image; it has ID,"
    ):
        chartqa.load(str(parquet("we_math", 2)), chartqa.PROMPT, 0)


def test_without_the_package_the_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "train.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="pip install datasets"):
        chartqa.load(str(tmp_path), chartqa.PROMPT, 0)


def test_a_row_without_a_picture_is_named(tables, monkeypatch):
    import datasets

    data = tables("we_math", 2)
    rows = data["testmini"].cast_column("image_path", datasets.Image(decode=False)).to_list()
    rows[1]["image_path"] = None
    data["testmini"] = datasets.Dataset.from_list(rows, features=data["testmini"].features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: data)
    item = we_math.load("We-Math/We-Math", we_math.PROMPT, 0).items[1]
    with pytest.raises(
        InputError, match=r"^2steps_1/2steps_2: picture testmini, row 1 cannot be read \(the row has none"
    ):
        item.picture()


def test_brain_scans_are_found_by_their_folders(make_br35h, caplog):
    caplog.set_level("INFO", logger="llava")
    folder = make_br35h(4)
    for source in (folder, folder.parent):
        found = br35h.load(str(source), br35h.PROMPTS[0], 0)
        assert [item.name for item in found.items[:4]] == ["yes/y0.png", "yes/y1.PNG", "yes/y2.Png", "yes/y3.png"]
        assert [(item.answer, item.kind) for item in found.items] == [("Yes", "Yes")] * 4 + [("No", "No")] * 4
    assert "not used: pred" in caplog.text and "not used: Thumbs.db" in caplog.text


def test_copies_and_contradictions_are_left_out(make_br35h, caplog):
    folder = make_br35h(4)
    (folder / "yes" / "z.jpg").write_bytes((folder / "yes" / "y1.PNG").read_bytes())
    (folder / "no" / "z.jpeg").write_bytes((folder / "yes" / "y2.Png").read_bytes())
    found = br35h.load(str(folder), br35h.PROMPTS[0], 0)
    assert found.records == 10 and len(found.items) == 7
    assert found.left_out == {"copies of an earlier picture": 1, "pictures in both classes": 2}
    assert not {"yes/z.jpg", "no/z.jpeg", "yes/y2.Png"} & {item.name for item in found.items}
    assert "left out: 1 copies" in caplog.text and "left out: 2 pictures in both" in caplog.text


def test_the_studys_prompts():
    asked = "Are there signs of a tumor in the image?"
    assert list(br35h.PROMPTS) == [
        f"<image>\nQuestion: {asked} Yes or No?\nAnswer: ",
        f"<image>\nQuestion: {asked} Yes or No?\nAnswer:",
        "<image>\nQuestion: Are there signs of a tumor? Yes or No?\nAnswer:",
        f"<image>\nQuestion: {asked} Yes or No?",
        f"<image>\n{asked} Yes or No?\nAnswer:",
        f"<image> {asked} Yes or No? Answer:",
        f"<image>\n{asked} Respond with Yes or No.\nAnswer:",
    ]
    assert br35h.CHOSEN_PROMPT == 5


def empty_folder(folder):
    (folder / "yes").mkdir()
    (folder / "no").mkdir()


def twice(folder):
    for name in ("a/yes", "a/no", "b/yes", "b/no"):
        (folder / name).mkdir(parents=True)


def half(folder):
    for split in ("train", "val", "test"):
        (folder / split).mkdir()
    (folder / "train" / "train_human.json").write_text("[]")


@pytest.mark.parametrize(
    ("task", "build", "message"),
    [
        (br35h, lambda folder: None, "no folder with yes/ and no/ there or one level below; it has: nothing"),
        (br35h, empty_folder, r"yes/ has no pictures \(.jpg, .jpeg, .png\)"),
        (br35h, twice, "more than one folder of yes/ and no/ .* a, b$"),
        (we_math, lambda folder: (folder / "x.json").touch(), "no folder with testmini.json or .*it has: x.json"),
        (we_math, lambda folder: (folder / "a.parquet").write_text("x"), "its parquet files cannot be read"),
        (chartqa, lambda folder: None, "no folder with train/, val/ and test/"),
        (chartqa, half, "train_augmented.json is missing"),
    ],
)
def test_a_source_of_another_layout_is_refused(tables, tmp_path, task, build, message):
    folder = tmp_path / "source"
    folder.mkdir()
    build(folder)
    with pytest.raises(InputError, match=rf"^--source .*{message}"):
        task.load(str(folder), "<image>", 0)


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        (br35h, "owner/name", "no such folder$"),
        (we_math, "no/such/folder", "no such folder, and not a hub id"),
        (chartqa, __file__, "is a file"),
    ],
)
def test_a_source_that_is_no_folder_is_refused(task, name, message):
    with pytest.raises(InputError, match=f"^--source {name}:? {message}"):
        task.load(name, "<image>", 0)


def test_a_bad_chart_record_is_named(make_chartqa):
    folder = make_chartqa(2)
    (folder / "val" / "val_augmented.json").write_text(json.dumps([{"imgname": "a.png", "query": "q", "label": ""}]))
    with pytest.raises(InputError, match=r"^val_augmented.json, record 0: `label` must be a text that is not empty"):
        chartqa.load(str(folder), chartqa.PROMPT, 0)


SENTENCES = "1\t2.5\tA fine film.\r\n2\t-3.1\tDull, and long.\r\n3\t0.2\tSo so.\r\n4\t1.9\tA fine film.\r\n"


@pytest.mark.parametrize("form", ["folder", "archive", "archive in an archive"])
def test_sentences_are_found_in_the_archive_of_the_package(form: str, tmp_path: Path) -> None:
    def packed(name: str, data: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    source = tmp_path / "source"
    if form == "folder":
        (source / "below").mkdir(parents=True)
        (source / "below" / snippets.FILE).write_bytes(SENTENCES.encode())
    else:
        inner = packed(f"hutto_ICWSM_2014/{snippets.FILE}", SENTENCES.encode())
        source.write_bytes(inner if form == "archive" else packed("p/additional/hutto_ICWSM_2014.tar.gz", inner))
    found = snippets.load(str(source), snippets.PROMPT, 0)
    assert [(item.prompt, item.answer) for item in found.items] == [
        ("A fine film. It was", "great"),
        ("Dull, and long. It was", "terrible"),
    ]
    assert found.records == 4
    assert found.left_out == {"ratings near zero": 1, "copies of an earlier sentence": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "is no tar archive"),
        (gzip.compress(b"x" * 99)[:-12] + b"\xff" * 9, "is no tar archive"),
        (None, "no such file or folder"),
    ],
)
def test_other_sources_of_sentences_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    source = tmp_path / "file"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(InputError, match=message):
        snippets.load(str(source), snippets.PROMPT, 0)
    for rating in ("good", "nan"):
        (tmp_path / snippets.FILE).write_text(f"1\t{rating}\tA film.\n")
        with pytest.raises(InputError, match=f"{snippets.FILE}:1: expected number, rating and sentence"):
            snippets.load(str(tmp_path), snippets.PROMPT, 0)
    (tmp_path / snippets.FILE).write_bytes(b"1\t2\t\xff\n")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        snippets.load(str(tmp_path), snippets.PROMPT, 0)
