"""Items of the training set: conformance data through the whole path, checks of every record, skipping."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_preprocess import FILES, GOLDEN, tokenizer_of
from transformers import AutoTokenizer

from llava import conversation
from llava.conversation import conv_templates
from llava.errors import InputError
from llava.model.multimodal_encoder.siglip_encoder import SigLipImageProcessor
from llava.samples import media
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.dataset import LazySupervisedDataset, make_supervised_data_module

IMAGES = GOLDEN / "images"
DATA = {name: json.loads((GOLDEN / "preprocess" / f"{name}.json").read_text()) for name in FILES}
VIDEO = json.loads((GOLDEN / "preprocess" / "video_frames_folder.json").read_text())
PIXELS = json.loads((IMAGES / "pixels.json").read_text())
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red dog."}]


@pytest.fixture(scope="module")
def qwen():
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_qwen")


def dataset(folder: Path, records: list, tokenizer, **flags) -> LazySupervisedDataset:
    file = folder / "data.json"
    file.write_text(json.dumps(records))
    defaults = {"version": "qwen_1_5", "image_folder": str(IMAGES), "image_processor": SigLipImageProcessor()}
    return LazySupervisedDataset(str(file), tokenizer, SimpleNamespace(**(defaults | flags)))


def case_names(name: str) -> list[int]:
    return [k for k, case in enumerate(DATA[name]["cases"]) if "input_ids" in case]


@pytest.mark.parametrize("name", FILES)
def test_golden_items(name, tmp_path):
    data = DATA[name]
    records = [case["record"] for case in data["cases"]]
    flags = {"version": data["version"], "mm_use_im_start_end": bool(data.get("mm_use_im_start_end"))}
    items = dataset(tmp_path, records, tokenizer_of(data), **flags)
    for index in case_names(name):
        case = data["cases"][index]
        if case["name"] == "image_record_without_tag":
            with pytest.raises(InputError, match="0 <image> marks"):
                items[index]
            continue
        item = items[index]
        assert item["input_ids"].tolist() == case["input_ids"], case["name"]
        assert item["labels"].tolist() == case["labels"], case["name"]
        assert item["id"] == case["id"]
        shown = [
            {"shape": list(pixels.shape), "size": list(size), "modality": modality}
            for pixels, size, modality in item["image"]
        ]
        assert shown == case["images"], case["name"]


def test_plain_keeps_the_first_of_several_images(tmp_path, qwen, caplog):
    """LLaVA-NeXT gives both images to one mark, which shifts those of the next rows; here the collator drops one."""
    record = next(c["record"] for c in DATA["plain_qwen"]["cases"] if c["name"] == "two_images_top")
    items = dataset(tmp_path, [record], qwen, version="plain")
    with caplog.at_level("WARNING", logger="llava"):
        batch = DataCollatorForSupervisedDataset(qwen)([items[0], items[0]])
    assert [list(size) for size in batch["image_sizes"]] == [[64, 64], [64, 64]]
    assert "first 1 of 2 images" in caplog.text


@pytest.mark.parametrize("case", VIDEO["cases"], ids=lambda case: case["name"])
def test_golden_frames_folder(case, tmp_path, qwen):
    items = dataset(tmp_path, [case["record"]], qwen, video_folder=str(IMAGES), **case["data_args"])
    before = copy.deepcopy(items.list_data_dict)
    for _ in range(2):  # LLaVA-NeXT writes the time instruction into the record, again at every fetch
        item = items[0]
        assert item["input_ids"].tolist() == case["input_ids"]
        assert item["labels"].tolist() == case["labels"]
    assert items.list_data_dict == before
    [(pixels, size, modality)] = item["image"]
    assert (list(pixels.shape), list(size), modality) == (case["pixel_shape"], case["size"], case["modality"])
    np.testing.assert_allclose(pixels.double().mean((1, 2, 3)).tolist(), case["frame_mean"], atol=1e-5)
    np.testing.assert_allclose(pixels[:, :, ::96, ::96].flatten().tolist(), case["sample_every_96"], atol=1e-5)


@pytest.mark.parametrize("aspect", sorted({case["aspect"] for case in PIXELS["dataset_process_image"]}))
def test_golden_process_image(aspect, tmp_path, qwen):
    flags = {"image_aspect_ratio": aspect, "image_grid_pinpoints": "(1x1),...,(6x6)"}
    items = dataset(tmp_path, [{"conversations": TURNS}], qwen, **flags)
    cases = [case for case in PIXELS["dataset_process_image"] if case["aspect"] == aspect]
    for case in cases[:: 1 if aspect in ("square", "pad") else 4]:
        pixels, size, modality = items.process_image(case["image"])
        assert (list(pixels.shape), list(size), modality) == (case["shape"], case["image_size"], case["modality"])


def test_one_image_by_aspect_ratio_and_several_by_pad(tmp_path, qwen):
    two = [{"from": "human", "value": "<image><image> What?"}, {"from": "gpt", "value": "A dog."}]
    records = [
        {"image": ["s64x64.png"], "conversations": TURNS},
        {"image": ["s300x200.png", "s64x64.png"], "conversations": two},
    ]
    items = dataset(tmp_path, records, qwen, image_aspect_ratio="anyres_max_9", image_grid_pinpoints="(1x1),...,(2x2)")
    assert items[0]["image"][0][0].shape == (2, 3, 384, 384)
    assert [tuple(pixels.shape) for pixels, _, _ in items[1]["image"]] == [(3, 384, 384)] * 2
    padded = items.process_image("s300x200.png", "pad")[0]
    assert torch.equal(items[1]["image"][0][0], padded)


def test_a_picture_is_decoded_and_tiled_once_a_sample(tmp_path, qwen, monkeypatch):
    calls = Counter()

    def counted(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: calls.update([name]) or original(*args, **more))

    records = [{"image": "s300x200.png", "conversations": TURNS}, {"image": "s64x64.png", "conversations": TURNS}]
    items = dataset(tmp_path, records, qwen, image_aspect_ratio="anyres_max_9", image_grid_pinpoints="(1x1),...,(2x2)")
    counted(media, "read_picture")
    counted(type(items.settings.image_processor), "preprocess")
    DataCollatorForSupervisedDataset(qwen)([items[0], items[1]])
    assert calls == {"read_picture": 2, "preprocess": 2}


def test_default_conversation_decides_without_version(tmp_path, qwen, monkeypatch):
    monkeypatch.setattr(conversation, "default_conversation", conv_templates["qwen_1_5"])
    items = dataset(tmp_path, [{"conversations": TURNS}], qwen, version=None)
    assert qwen.decode(items[0]["input_ids"]).startswith("<|im_start|>system")


def test_text_run_has_no_images(tmp_path, qwen):
    items = dataset(tmp_path, [{"conversations": TURNS}], qwen, image_processor=None)
    assert sorted(items[0]) == ["id", "input_ids", "labels"]


def test_null_means_no_image(tmp_path, qwen):
    items = dataset(tmp_path, [{"image": None, "conversations": TURNS}], qwen)
    assert items[0]["image"][0][2] == "text"
    assert items.modality_lengths[0] < 0


def test_answers_only(tmp_path, qwen):
    items = dataset(tmp_path, [{"conversations": TURNS}], qwen, train_on_answers_only=True)
    labels = items[0]["labels"]
    assert qwen.decode(labels[labels != -100]) == "A red dog.<|im_end|>"


@pytest.mark.parametrize(("own", "text"), [(False, "You are a helpful"), (True, "You are Qwen, created by Alibaba")])
def test_system_text_of_qwen_2_5(tmp_path, qwen, own, text):
    items = dataset(tmp_path, [{"conversations": TURNS}], qwen, version="qwen_2_5", use_template_system_prompt=own)
    assert qwen.decode(items[0]["input_ids"]).startswith(f"<|im_start|>system\n{text}")


def test_words_per_image(tmp_path, qwen):
    records = [{"image": ["a", "b"], "conversations": TURNS}, {"video": "v", "conversations": TURNS}]
    items = dataset(tmp_path, records, qwen)
    assert items.lengths == [5 + 128, 5]
    assert dataset(tmp_path, records, qwen, words_per_image=700).lengths == [5 + 1400, 5]


@pytest.fixture()
def bad(tmp_path) -> dict[str, tuple[dict, str]]:
    """Records that cannot be used, and what the message must say."""
    whole = (IMAGES / "s300x200.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    image.save(tmp_path / "whole.jpg")
    jpeg = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    here = str(tmp_path)
    three = [{"from": "human", "value": "<image><image><image>"}, {"from": "gpt", "value": "Yes"}]
    none = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Yes"}]
    good = str(IMAGES / "s64x64.png")
    return {
        "missing": ({"image": f"{here}/none.png", "conversations": TURNS}, r"none\.png does not exist.*--image_folder"),
        "truncated png": ({"image": f"{here}/truncated.png", "conversations": TURNS}, r"truncated\.png cannot be dec"),
        "truncated jpeg": ({"image": f"{here}/truncated.jpg", "conversations": TURNS}, r"truncated\.jpg cannot be dec"),
        "no image": ({"image": f"{here}/text.png", "conversations": TURNS}, r"text\.png cannot be decoded"),
        "folder": ({"image": here, "conversations": TURNS}, "is a folder"),
        "number": ({"image": [3], "conversations": TURNS}, "a list of paths"),
        "more marks": ({"image": good, "conversations": three}, "3 <image> marks in the turns, but 1 images"),
        "fewer marks": ({"image": [good, good], "conversations": TURNS}, "1 <image> marks in the turns, but 2 images"),
        "no marks": ({"image": good, "conversations": none}, "0 <image> marks in the turns, but 1 images"),
        "no video": ({"video": f"{here}/none.mp4", "conversations": TURNS}, r"none\.mp4 does not exist"),
        "two videos": ({"video": ["a", "b"], "conversations": TURNS}, "`video` must be one path"),
        "long": (
            {"conversations": [{"from": "human", "value": "w " * 200}, TURNS[1]]},
            "--model_max_length 60 cuts off",
        ),
    }


BAD = (
    *("missing", "truncated png", "truncated jpeg", "no image", "folder", "number"),
    *("more marks", "fewer marks", "no marks", "no video", "two videos", "long"),
)


# train.py hands over the model's own count; one token an image here
IN_TRAINING = {"count_image_tokens": lambda pixels, size, modality: 1}


@pytest.fixture()
def short():
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_qwen", model_max_length=60)


def test_without_a_model_s_count_any_label_that_is_left_will_do(tmp_path, short):
    record = {"conversations": [{"from": "human", "value": "w " * 200}, TURNS[1]], "id": "r"}
    item = dataset(tmp_path, [record], short)[0]
    assert (item["labels"][:60] != -100).any()
    with pytest.raises(InputError, match=r"record 'r'.*--model_max_length 60 cuts off"):
        dataset(tmp_path, [record], short, train_on_answers_only=True)[0]


def test_marks_in_a_system_turn_count(tmp_path, qwen):
    turns = [{"from": "system", "value": "Look at <image>."}, {"from": "human", "value": "What?"}, TURNS[1]]
    item = dataset(tmp_path, [{"image": "s64x64.png", "conversations": turns}], qwen)[0]
    assert item["input_ids"].tolist().count(-200) == 1
    with pytest.raises(InputError, match="2 <image> marks in the turns, but 1 images"):
        dataset(tmp_path, [{"image": "s64x64.png", "conversations": [turns[0], *TURNS]}], qwen)[0]


@pytest.mark.parametrize("name", BAD)
def test_bad_record(bad, name, tmp_path, short):
    record, message = bad[name]
    with pytest.raises(InputError, match=rf"record 'the-id' \(number 1\): .*{message}"):
        items = dataset(tmp_path, [{"conversations": TURNS}, record | {"id": "the-id"}], short, **IN_TRAINING)
        items[0]
        items[1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "s64x64.png"}, "no `conversations`"),
        ({"conversations": []}, "`conversations` must be a non-empty list of turns"),
        ({"conversations": [{"from": "human"}]}, "turn 0 needs texts"),
    ],
)
def test_record_without_turns_is_refused_at_once(record, message, tmp_path, qwen):
    with pytest.raises(InputError, match=rf"record 'x' \(number 1\): {message}"):
        dataset(tmp_path, [{"conversations": TURNS}, record | {"id": "x"}], qwen)


def test_bad_samples_are_skipped_and_listed(bad, tmp_path, short, caplog):
    good = {"image": str(IMAGES / "s64x64.png"), "conversations": TURNS, "id": "good"}
    records = [record | {"id": name} for name, (record, _) in bad.items()]
    records = [{"id": "empty"}, *records[:4], good, *records[4:], {"conversations": TURNS}]
    with caplog.at_level("WARNING", logger="llava"):
        items = dataset(tmp_path, records, short, skip_bad_samples=True, **IN_TRAINING)
    assert [item["id"] for item in items] == ["good", len(records) - 1]
    assert {entry["id"] for entry in items.skipped} == {"empty", *bad}
    assert len(items.lengths) == len(items.modality_lengths) == len(items) == 2
    reasons = {entry["id"]: entry["reason"] for entry in items.skipped}
    assert "does not exist" in reasons["missing"]
    assert all(entry["reason"] in caplog.text for entry in items.skipped)


def test_unanswered_sample_is_skipped(tmp_path, qwen):
    question = {"conversations": TURNS[:1], "id": "q"}
    items = dataset(
        tmp_path, [question, {"conversations": TURNS}], qwen, skip_bad_samples=True, train_on_answers_only=True
    )
    [skipped] = items.skipped
    assert skipped["id"] == "q" and skipped["reason"].endswith("record 'q' (number 0): it has no supervised token")


def test_a_picture_too_long_to_be_padded(tmp_path, qwen):
    Image.new("L", (20_001, 1)).save(tmp_path / "long.png")
    record = {"image": "long.png", "conversations": TURNS, "id": "r"}
    dataset(tmp_path, [record], qwen, image_folder=str(tmp_path))[0]
    with pytest.raises(InputError, match=r"'r'.* 20001 x 1 pixels is too long to be padded"):
        dataset(tmp_path, [record], qwen, image_folder=str(tmp_path), image_aspect_ratio="pad")[0]


def test_only_bad_samples_is_an_error(tmp_path, qwen):
    with pytest.raises(InputError, match=r"all 1 records are bad; the first: .*data\.json: record 'x'"):
        dataset(tmp_path, [{"id": "x"}], qwen, skip_bad_samples=True)


def test_image_features_count_against_the_length(tmp_path, short):
    record = {"image": "s64x64.png", "conversations": TURNS, "id": "r"}
    sizes = []

    def count(pixels, size, modality):
        sizes.append((tuple(pixels.shape), size, modality))
        return 50

    dataset(tmp_path, [record], short)[0]
    items = dataset(tmp_path, [record], short, count_image_tokens=count)
    with pytest.raises(InputError, match=r"'r'.*--model_max_length 60 cuts off all supervised tokens"):
        items[0]
    assert sizes == [((3, 384, 384), (64, 64), "image")]
    skipping = dataset(
        tmp_path, [record, {"conversations": TURNS}], short, count_image_tokens=count, skip_bad_samples=True
    )
    assert [entry["id"] for entry in skipping.skipped] == ["r"]


@pytest.mark.parametrize("features", [None, 1, 20])
def test_an_answer_is_cut_off_in_part(features, tmp_path, qwen):
    """Taken as it is but where a flag needs whole answers; with and without features of images in front."""
    shown = {} if features is None else {"image": "s64x64.png"}
    turns = [{"from": "human", "value": "<image>\n?" if shown else "?"}, {"from": "gpt", "value": "word " * 9}]
    record = {**shown, "conversations": turns, "id": "r"}
    settings = {"train_on_answers_only": True, "whole_answers_for": "--zo_objective classification"}
    if shown:
        settings["count_image_tokens"] = lambda *entry: features
    (end,) = (dataset(tmp_path, [record], qwen, **settings)[0]["labels"] != -100).nonzero()[-1] + 1
    length = int(end) + (features or 1) - 1
    fits, cuts = (AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_qwen", model_max_length=length - k) for k in (0, 1))
    assert dataset(tmp_path, [record], fits, **settings)[0]["id"] == "r"
    assert dataset(tmp_path, [record], cuts, **settings | {"whole_answers_for": ""})[0]["id"] == "r"
    said = rf"'r'.* answer ends at token {length}, so --model_max_length {length - 1} cuts .* and --zo_objective class"
    with pytest.raises(InputError, match=said):
        dataset(tmp_path, [record], cuts, **settings)[0]
    more = dataset(tmp_path, [record, {"conversations": TURNS}], cuts, skip_bad_samples=True, **settings)
    assert [entry["id"] for entry in more.skipped] == ["r"]


def test_image_without_tower_is_refused(tmp_path, qwen):
    items = dataset(tmp_path, [{"image": "s64x64.png", "conversations": TURNS}], qwen, image_processor=None)
    with pytest.raises(InputError, match="no vision tower; set --vision_tower"):
        items[0]


def test_unknown_names_are_refused(tmp_path, qwen):
    with pytest.raises(InputError, match=r"image_aspect_ratio.*'tall'.*anyres"):
        dataset(tmp_path, [{"conversations": TURNS}], qwen, image_aspect_ratio="tall")
    with pytest.raises(InputError, match=r"'qwen_9' is not a conversation template; allowed: .*qwen_1_5"):
        dataset(tmp_path, [{"conversations": TURNS}], qwen, version="qwen_9")


def test_data_module(tmp_path, qwen):
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"conversations": TURNS}]))
    data_args = SimpleNamespace(data_path=str(file), version="qwen_1_5")
    module = make_supervised_data_module(qwen, data_args)
    assert module["eval_dataset"] is None
    batch = module["data_collator"]([module["train_dataset"][0]])
    assert batch["input_ids"].shape == batch["labels"].shape
    file.write_text("[]")
    with pytest.raises(InputError, match="holds no records"):
        make_supervised_data_module(qwen, data_args)


def test_loading_in_worker_processes(tmp_path, qwen):
    records = [{"image": "s64x64.png", "conversations": TURNS, "id": k} for k in range(4)]
    items = dataset(tmp_path, records, qwen)
    loader = torch.utils.data.DataLoader(items, 2, num_workers=1, collate_fn=DataCollatorForSupervisedDataset(qwen))
    here = DataCollatorForSupervisedDataset(qwen)([items[0], items[1]])
    batches = list(loader)
    assert len(batches) == 2
    assert torch.equal(batches[0]["input_ids"], here["input_ids"])
    assert torch.equal(batches[0]["images"][1], here["images"][1])
