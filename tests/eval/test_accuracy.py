"""Evaluation end to end on a tiny random model: batching, resuming, messages."""

from __future__ import annotations

import functools
import json
import math

import pytest
from transformers import GenerationMixin

from llava.errors import InputError
from llava.eval import accuracy
from llava.eval.accuracy import evaluate
from llava.eval.answers_file import AnswersFile
from llava.eval.generation import Answerer, Decoding, Question, left_padded
from llava.eval.scoring import check_field


def run(loaded, records, folder, **options):
    return evaluate(*loaded, records, folder, progress=False, max_new_tokens=5, **options)


def flags(checkpoint, folder, *more):
    output = str(folder / "out" / "answers.jsonl")
    base = ["--model-path", str(checkpoint), "--data", str(folder / "data.json"), "--image-folder", str(folder)]
    return [*base, "--output", output, "--max-new-tokens", "3", "--batch-size", "2", *more]


@pytest.fixture
def finished(checkpoint, records, tmp_path):
    accuracy.main(flags(checkpoint, tmp_path))
    return tmp_path / "out" / "answers.jsonl"


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch(loaded, records, tmp_path):
    text_only = {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "?"}]}
    mixed = [*records, text_only]
    one = run(loaded, mixed, tmp_path, batch_size=1)
    many = run(loaded, mixed, tmp_path, batch_size=7)
    assert [a["prediction"] for a in one["answers"]] == [a["prediction"] for a in many["answers"]]
    assert len({a["prediction"] for a in one["answers"]}) > 1


def test_accuracy_counts_matching_answers(loaded, records, tmp_path):
    answers = run(loaded, records, tmp_path)["answers"]
    known = json.loads(json.dumps(records))
    for k, (record, answer) in enumerate(zip(known, answers, strict=True)):
        record["conversations"][-1]["value"] = answer["prediction"] + "." if k < 4 else "something else"
    result = run(loaded, known, tmp_path)
    assert (result["total"], result["correct"]) == (6, 4)
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert [a["correct"] for a in result["answers"]] == [True] * 4 + [False] * 2


def test_model_keeps_its_mode(loaded, records, tmp_path):
    model = loaded[0]
    model.train()
    try:
        run(loaded, records[:1], tmp_path)
        assert model.training
    finally:
        model.eval()


def test_only_missing_answers_are_made(loaded, records, tmp_path):
    done = [{"id": r["id"], "prediction": "Yes", "reference": "Yes"} for r in records[:4]]
    fresh = []
    result = run(loaded, records, tmp_path, done=done, on_batch=fresh.extend, batch_size=4)
    assert [a["id"] for a in fresh] == [r["id"] for r in records[4:]]
    assert result["correct"] >= 4


def test_prompt_is_the_template_with_an_open_answer(loaded):
    question = Question("q", [("<image>\nA?", "b"), ("C?", None)], [], system="Be short.")
    assert Answerer(*loaded).prompt(question) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n<image>\nA?<|im_end|>\n<|im_start|>assistant\nb"
        "<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_left_padding():
    import torch

    ids, mask = left_padded([torch.tensor([1, 2, 3]), torch.tensor([4])], pad_id=9, device="cpu")
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "scan/images/none.png"}, r"scan_train_00001.*none\.png does not exist"),
        ({"image": "broken.png"}, r"scan_train_00001.*broken\.png cannot be decoded"),
        ({"image": "cut.png"}, r"scan_train_00001.*cut\.png cannot be decoded"),
        ({"image": []}, "scan_train_00001.*1 <image> tags for 0 images"),
        ({"conversations": []}, "scan_train_00001.*`conversations` must be a non-empty list"),
    ],
)
def test_bad_records_are_named(loaded, records, tmp_path, change, message):
    (tmp_path / "broken.png").write_text("not a picture")
    picture = (tmp_path / records[0]["image"]).read_bytes()
    (tmp_path / "cut.png").write_bytes(picture[: len(picture) // 2])
    with pytest.raises(InputError, match=message):
        run(loaded, [records[0], records[1] | change], tmp_path)


def test_a_question_is_asked_whole_or_not_at_all(loaded, records, tmp_path, monkeypatch):
    whole = run(loaded, records, tmp_path)["answers"]
    config = loaded[0].config
    monkeypatch.setattr(config, "tokenizer_model_max_length", 10, raising=False)  # of training, and too short
    assert run(loaded, records, tmp_path)["answers"] == whole
    monkeypatch.setattr(config, "max_position_embeddings", 20)
    with pytest.raises(InputError, match=r"train_0000\d.*the prompt has \d+ tokens .* at most 20"):
        run(loaded, records, tmp_path)


def test_unknown_metric_version_and_empty_data_are_refused(loaded, records, tmp_path):
    with pytest.raises(InputError, match="relaxed"):
        run(loaded, records, tmp_path, metric="bleu")
    with pytest.raises(InputError, match="qwen_1_5"):
        run(loaded, records, tmp_path, version="nope")
    with pytest.raises(InputError, match="0 records"):
        run(loaded, [], tmp_path)


def test_bad_decoding_is_refused():
    temperatures = ({"temperature": value} for value in (-1.0, math.nan, math.inf))
    for bad in ({"max_new_tokens": 0}, *temperatures, {"top_p": 2.0}, {"num_beams": 0}):
        with pytest.raises(InputError, match="--"):
            Decoding(**bad)


def test_command_writes_answers_and_summary(finished, records):
    lines = [json.loads(line) for line in finished.read_text().splitlines()]
    summary = json.loads(finished.with_suffix(".json").read_text())
    assert [line["id"] for line in lines] == [r["id"] for r in records]
    assert (summary["total"], summary["complete"], summary["metric"]) == (6, True, "exact")
    assert summary["accuracy"] == summary["correct"] / 6


@pytest.mark.parametrize("repeats", [False, True])
def test_only_answers_of_a_list_are_given(loaded, records, tmp_path, monkeypatch, repeats):
    """A model with random weights says anything else; one of text has the prompt in what it generates."""
    choices = ["Yes", "No way", "No"]
    free = {one["prediction"] for one in run(loaded, records, tmp_path)["answers"]}
    if repeats:
        turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
        records = [{"id": number, "conversations": turns} for number in range(2)]
        monkeypatch.setattr(loaded[0], "generate", functools.partial(GenerationMixin.generate, loaded[0]))
        monkeypatch.setattr(Answerer, "_takes_images", False)
    given = run(loaded, records, tmp_path, choices=choices)["answers"]
    assert {one["prediction"] for one in given} <= set(choices) and not free & set(choices)


def test_answers_of_is_a_file_with_some(checkpoint, records, tmp_path, refused):
    accuracy.main(flags(checkpoint, tmp_path, "--answers-of", str(tmp_path / "data.json")))
    given = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert {one["prediction"] for one in given} <= {one["reference"] for one in given}
    message = refused(accuracy.main, flags(checkpoint, tmp_path))
    assert "answers_sha256" in message
    (tmp_path / "one.json").write_text(json.dumps(records[:1]))
    message = refused(accuracy.main, flags(checkpoint, tmp_path, "--answers-of", str(tmp_path / "one.json")))
    assert "one.json: it has 1 different answers" in message


def test_accuracy_of_each_question_type(checkpoint, records, tmp_path, capsys, refused):
    accuracy.main(flags(checkpoint, tmp_path, "--group-by", "kind"))
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["angle", "bar", "line", "scan", "sides", "total"]
    summary = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert summary["groups"]["scan"]["total"] == 2
    assert sum(group["total"] for group in summary["groups"].values()) == 6
    message = refused(accuracy.main, flags(checkpoint, tmp_path, "--group-by", "mood"))
    assert "--group-by mood: record 'scan_train_00000'" in message
    (tmp_path / "out" / "answers.jsonl").unlink()
    refused(accuracy.main, flags(checkpoint, tmp_path, "--group-by", "mood"))
    assert not (tmp_path / "out" / "answers.jsonl").exists()  # before anything is answered


def test_command_continues_after_an_interruption(finished, checkpoint, tmp_path, monkeypatch, capsys):
    whole = finished.read_text()
    lines = whole.splitlines(keepends=True)
    finished.write_text("".join(lines[:3]) + lines[3][:10])
    asked = []
    original = Answerer.answer
    monkeypatch.setattr(Answerer, "answer", lambda self, q, d=None: asked.extend(q) or original(self, q, d))
    accuracy.main(flags(checkpoint, tmp_path))
    assert finished.read_text() == whole
    assert len(asked) == 3
    assert "total 6  correct" in capsys.readouterr().out


def test_answers_of_another_run_are_kept(finished, checkpoint, tmp_path, refused):
    whole = finished.read_text()
    message = refused(accuracy.main, flags(checkpoint, tmp_path, "--version", "qwen_2"))
    assert "version was 'qwen_1_5', now 'qwen_2'" in message and "--overwrite" in message
    data = tmp_path / "data.json"
    data.write_text(data.read_text() + " ")
    assert "data_sha256" in refused(accuracy.main, flags(checkpoint, tmp_path))
    assert finished.read_text() == whole
    accuracy.main(flags(checkpoint, tmp_path, "--overwrite"))
    assert json.loads(finished.with_suffix(".json").read_text())["complete"] is True


def test_answers_without_settings_or_out_of_order_are_refused(finished, checkpoint, tmp_path, refused):
    lines = finished.read_text().splitlines(keepends=True)
    finished.write_text("".join([lines[1], lines[0]]))
    assert "line 1: not the answer to record 1" in refused(accuracy.main, flags(checkpoint, tmp_path))
    finished.with_suffix(".json").unlink()
    assert "does not say whose" in refused(accuracy.main, flags(checkpoint, tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric", "bleu"], "exact, choice, relaxed"),
        (["--image-folder", "/nowhere"], "--image-folder /nowhere"),
        (["--data", "/nowhere.json"], "/nowhere.json"),
        (["--output", "answers.txt"], ".jsonl"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
    ],
)
def test_wrong_flags_are_named(checkpoint, records, tmp_path, refused, more, message):
    assert message in refused(accuracy.main, flags(checkpoint, tmp_path, *more))


@pytest.mark.parametrize(
    ("value", "message"), [([], "has an empty list there"), ("\ud800", "half a character"), (["\ud800"], "half a")]
)
def test_values_that_cannot_name_a_group(value, message):
    with pytest.raises(InputError, match=rf"--group-by kind: record 1 \(number 1\): .*{message}"):
        check_field([{"kind": ["a"]}, {"kind": value}], "kind")


@pytest.mark.parametrize("when", ["append", "finish"])
def test_a_full_disk_names_the_file(when, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    told = pytest.raises(InputError, match=r"--output .*out\.jsonl: cannot write there .*No space left")
    with told, AnswersFile(tmp_path / "out.jsonl", {}, ["a"]) as file:
        monkeypatch.setattr("os.fsync", full)
        file.append([{"id": "a", "prediction": "Yes"}]) if when == "append" else file.finish({})


def test_answers_of_other_bits_name_the_flags(tmp_path):
    with AnswersFile(tmp_path / "out.jsonl", {"quantization_config": {"load_in_4bit": True}}, ["a"]) as file:
        file.append([{"id": "a", "prediction": "Yes"}])
    with pytest.raises(InputError, match=r"has answers of another run, with other --bits, --quant-type or"):
        AnswersFile(tmp_path / "out.jsonl", {}, ["a"])
