"""The check of data gives training's verdict, names what is wrong, and needs no weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.check import command as check
from llava.check.lengths import bars, histogram, summarise
from llava.check.record_checks import OpenedOnce, Outline, entry_outlines
from llava.check.without_weights import prepare_data_arguments
from llava.errors import InputError
from llava.mm_utils import count_tiles, image_processing
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.siglip_encoder import SigLipImageProcessor
from llava.model.own_settings import read_config
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.media import Media, media_entries
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments

ROOT = Path(__file__).parents[2]
TINY = ROOT / "playground" / "tiny-llava-onevision"
DEMO = ROOT / "playground" / "data"
ANYRES = {
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(3x3)",
    "mm_patch_merge_type": "spatial_unpad",
}


def turns(question: str = "<image>\nIs there a mass?", answer: str = "Yes") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Pictures of several shapes, broken ones, and a folder of frames."""
    for name, size in {"a": (64, 64), "wide": (200, 60), "tall": (50, 170), "b": (64, 64)}.items():
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{name}.png")
    whole = (tmp_path / "wide.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "film").mkdir()
    for number in range(3):
        Image.new("RGB", (60, 40), (number, 0, 0)).save(tmp_path / "film" / f"{number}.png")
    return tmp_path


def words(folder: Path, records: Any, *more: Any, model: Path | None = TINY, **flags: Any) -> list[str]:
    """A command line for records, which are written to a file."""
    file = folder / "data.json"
    file.write_text(json.dumps(records))
    command = [str(file), "--image-folder", str(folder), "--video-folder", str(folder), *map(str, more)]
    command += [] if model is None else ["--model-path", str(model)]
    return command + [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


def report_of(command: list[str]) -> dict[str, Any]:
    return check.check(check._parser().parse_args(command))


def found(report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return report["problems"][kind]["found"]


def run(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    try:
        check.main(command)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


@dataclass
class TrainingRun:
    """What training would have with the same flags."""

    command: list[str]

    def __post_init__(self) -> None:
        arguments = check._parser().parse_args(self.command)
        self.folder = Path(arguments.files[0]).parent
        model_args, self.data_args, training_args = check._run_arguments(arguments)
        self.tokenizer = prepare_data_arguments(model_args, self.data_args, training_args)

    def data(self, *records: dict[str, Any], **changes: Any) -> LazySupervisedDataset:
        """Its data set of these records."""
        file = self.folder / "of_training.json"
        file.write_text(json.dumps(records))
        for name, value in changes.items():
            setattr(self.data_args, name, value)
        return LazySupervisedDataset(str(file), self.tokenizer, self.data_args)


LONG = "word " * 300
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "missing": ({"image": "none.png", "conversations": turns()}, "media", "none.png does not exist"),
    "truncated": ({"image": "half.png", "conversations": turns()}, "media", "half.png cannot be decoded"),
    "no picture": ({"image": "text.png", "conversations": turns()}, "media", "text.png cannot be decoded"),
    "number": ({"image": 3, "conversations": turns()}, "media", "must be a path"),
    "no video": ({"video": "none.mp4", "conversations": turns()}, "media", "none.mp4 does not exist"),
    "two marks": ({"image": "a.png", "conversations": turns("<image><image>")}, "marks", "2 <image> marks"),
    "no mark": ({"image": "a.png", "conversations": turns("What?")}, "marks", "0 <image> marks"),
    "swapped": (
        {"image": "a.png", "conversations": [{**turns()[0], "from": "gpt"}, {**turns()[1], "from": "human"}]},
        "marks",
        "are the roles swapped?",
    ),
    "no turns": ({"image": "a.png"}, "turns", "no `conversations`"),
    "empty turns": ({"conversations": []}, "turns", "non-empty list"),
    "no value": ({"conversations": [{"from": "human"}]}, "turns", "turn 0 needs texts"),
    "no answer": ({"image": "a.png", "conversations": turns()[:1]}, "unsupervised", "no supervised token"),
    "cut": ({"image": "a.png", "conversations": turns(f"<image>\n{LONG}")}, "cut", "--model_max_length 400 cuts off"),
    "cut by images": (
        {"image": ["a.png"] * 7, "conversations": turns("<image>" * 7)},
        "cut",
        "--model_max_length 400 cuts off",
    ),
}
GOOD: dict[str, dict[str, Any]] = {
    "one": {"image": "a.png", "conversations": turns()},
    "wide": {"image": "wide.png", "conversations": turns()},
    "tall": {"image": ["tall.png"], "conversations": turns("<image>\nIs it tall?") + turns("And wide?", "No")},
    "two": {"image": ["a.png", "wide.png"], "conversations": turns("<image><image>")},
    "film": {"video": "film", "conversations": turns()},
    "text": {"conversations": turns("What?")},
    "over": {"image": "a.png", "conversations": turns(answer=LONG)},
}
BOTH = {"model_max_length": 400, "train_on_answers_only": True}


def everything() -> list[dict[str, Any]]:
    records = {name: record for name, (record, _, _) in BAD.items()} | GOOD
    return [record | {"id": name} for name, record in records.items()]


def test_each_problem_is_found_and_named(folder):
    report = report_of(words(folder, everything(), **BOTH))
    assert (report["would_fail"], report["records"]) == (len(BAD), len(BAD) + len(GOOD))
    for name, (_, kind, message) in BAD.items():
        [entry] = [entry for entry in found(report, kind) if entry["id"] == name]
        assert message in entry["message"]
        assert entry["record"] == f"record {name!r} (number {list(BAD).index(name)})"
    assert sum(len(entry["found"]) for entry in report["problems"].values()) == len(BAD)
    paths = {entry["id"]: entry["path"] for entry in found(report, "media") if "path" in entry}
    assert paths == {"missing": "none.png", "truncated": "half.png", "no picture": "text.png", "no video": "none.mp4"}
    assert report["kinds"] == {"single image": 12, "several images": 2, "video": 2, "text only": 1, "malformed": 4}


@pytest.mark.parametrize(
    "flags", [{}, ANYRES, {"train_on_answers_only": False}, {"version": "v1"}, {"version": "plain"}]
)
def test_the_verdict_is_that_of_training(folder, flags):
    """What passes can be fetched and collated alone; what does not raises, with the same message."""
    command = words(folder, everything(), **(BOTH | flags))
    report = report_of(command)
    refused: dict[str, list[str]] = {}
    for kind in report["problems"].values():
        for entry in kind["found"]:
            refused.setdefault(entry["id"], []).append(entry["message"])
    training = TrainingRun(command)
    collate = DataCollatorForSupervisedDataset(training.tokenizer)
    for record in everything():
        if record["id"] not in refused:
            collate([training.data(record)[0]])
            continue
        with pytest.raises(InputError) as error:
            collate([training.data(record)[0]])
        unsupervised = "no token of this batch is supervised" in str(error.value)
        assert unsupervised or any(message in str(error.value) for message in refused[record["id"]])
    assert refused and len(refused) == report["would_fail"]
    items = training.data(*everything(), skip_bad_samples=True)
    assert {entry["id"] for entry in items.skipped} == set(refused)


@pytest.mark.parametrize(
    "flags", [ANYRES, {}, {"mm_patch_merge_type": "spatial_unpad", "mm_newline_position": "frame"}]
)
def test_lengths_are_those_of_the_model(folder, flags):
    """Without weights here, spliced by the real model there."""
    records = [record | {"id": name} for name, record in GOOD.items()]
    command = words(folder, records, model_max_length=2000, mm_use_im_patch_token=False, **flags)
    items = TrainingRun(command).data(*records)
    _, model, _, _ = load_pretrained_model(str(TINY), None, "llava_qwen", torch_dtype="float32")
    defaults = {"image_aspect_ratio": "square", "mm_patch_merge_type": "flat", "mm_newline_position": "grid"}
    for name, value in (defaults | flags).items():
        setattr(model.config, name, value)
    model.config.image_grid_pinpoints = items.data_args.image_grid_pinpoints
    model.config.tokenizer_model_max_length = 2000
    collate = DataCollatorForSupervisedDataset(items.tokenizer)
    command += [f"--{name}={value}" for name, value in defaults.items() if name not in flags]
    arguments = check._parser().parse_args(command)
    checker = check._checker(arguments, check._run_arguments(arguments))
    for index, record in enumerate(records):
        batch = collate([items[index]])
        with torch.no_grad():
            spliced = model.prepare_inputs_labels_for_multimodal(
                batch["input_ids"], None, batch["attention_mask"], None, batch["labels"],
                batch["images"], batch["modalities"], batch["image_sizes"],
            )  # fmt: skip
        assert checker.check(record, index).length == spliced[4].shape[1], record["id"]


def test_all_pictures_are_named_and_each_is_opened_once(folder, monkeypatch):
    """Also the second broken picture of a record, and marks that do not match in a record with a broken one."""
    opened: list[Any] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: opened.append(Path(file).name) or real(file, *rest))
    images = ["none.png", "a.png", "half.png"]
    records = [{"id": k, "image": images, "conversations": turns("<image>" * (k + 2))} for k in range(2)]
    records += [{"image": "a.png", "conversations": turns()}] * 3
    report = report_of(words(folder, records))
    assert [(entry["id"], entry["path"]) for entry in found(report, "media")] == [
        *((k, name) for k in range(2) for name in ("none.png", "half.png"))
    ]
    assert [entry["id"] for entry in found(report, "marks")] == [0]
    assert report["would_fail"] == 2
    assert sorted(opened) == sorted(images)


def test_outlines_count_as_pixels_do(folder):
    settings = TrainingRun(words(folder, [GOOD["one"]], **ANYRES)).data(GOOD["one"]).settings
    count = settings.count_image_tokens
    opened = OpenedOnce()
    assert opened.image("wide.png", settings) == Outline((200, 60))
    for paths in (["a.png"], ["wide.png"], ["tall.png"], ["a.png", "wide.png"]):
        pictures = Media(tuple(Image.open(folder / path) for path in paths))
        outlines = entry_outlines(Media(tuple(opened.image(path, settings) for path in paths)), settings)
        real = media_entries(pictures, settings)
        assert [count(*entry) for entry in outlines] == [count(*entry) for entry in real]
        assert all(entry[0].device.type == "meta" for entry in outlines)


@pytest.mark.parametrize("name", ["square", "pad", "anyres", "anyres_max_4"])
@pytest.mark.parametrize("size", [(64, 64), (300, 20), (20, 300), (1, 1)])
def test_tiles_are_counted_without_pixels(name, size):
    processor = SigLipImageProcessor(size=(28, 28))
    pinpoints = [[28, 28], [56, 28], [28, 84], [70, 70]]  # the last is no multiple of the tile
    pixels = image_processing(name)(Image.new("RGB", size), processor, pinpoints)
    assert count_tiles(name, size, processor, pinpoints) == (1 if pixels.ndim == 3 else len(pixels))


def test_no_weights_are_needed(folder):
    records = [record | {"id": name} for name, record in GOOD.items()]
    complete = report_of(words(folder, records))["lengths"]
    bare = folder / "bare"
    shutil.copytree(TINY, bare)
    (bare / "model.safetensors").unlink()
    assert report_of(words(folder, records, model=bare))["lengths"] == complete
    (bare / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-1-of-2.safetensors"}}')
    assert report_of(words(folder, records, model=bare))["lengths"] == complete


def test_a_plain_language_model_with_a_tower(folder):
    """The vision tower of the flags, a folder with a config alone."""
    config = json.loads((TINY / "config.json").read_text())
    tower, plain = folder / "tower", folder / "plain"
    shutil.copytree(TINY, plain, ignore=shutil.ignore_patterns("*.safetensors"))
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(config["mm_vision_tower_config"]))
    (tower / "preprocessor_config.json").write_text(json.dumps(config["mm_image_processor_config"]))
    kept = {key: value for key, value in config.items() if "mm_" not in key} | {"model_type": "qwen2"}
    (plain / "config.json").write_text(json.dumps(kept | {"architectures": ["Qwen2ForCausalLM"]}))
    records = [GOOD["one"], GOOD["text"]]
    with_tower = report_of(words(folder, records, model=plain, vision_tower=tower, mm_patch_merge_type="spatial_unpad"))
    assert with_tower["lengths"] == report_of(words(folder, records))["lengths"]
    without = report_of(words(folder, records, model=plain))
    assert "there is no vision tower" in found(without, "media")[0]["message"]
    assert without["would_fail"] == 1


def test_without_a_model(folder, capsys):
    code, text, _ = run(words(folder, everything(), model=None, train_on_answers_only=True), capsys)
    assert code == 1
    assert "not checked" in text and "--model-path" in text
    assert f"training would fail on {len(BAD) - 2} of {len(BAD) + len(GOOD)} records" in text  # all but the long ones
    code, text, _ = run(words(folder, [GOOD["one"], GOOD["film"]], model=None), capsys)
    assert (code, text.splitlines()[-1]) == (0, "ready to train, as far as can be told without --model-path")


@pytest.mark.parametrize("model", [TINY, None])
def test_turns_that_a_template_cannot_hold(folder, model):
    record = {"conversations": [*turns("What?"), *turns("What?")[1:]]}
    assert report_of(words(folder, [record], model=model))["would_fail"] == 0
    report = report_of(words(folder, [record, GOOD["text"]], model=model, version="v1"))
    assert "alternate" in found(report, "template")[0]["message"]
    assert report["would_fail"] == 1


def test_repeats_and_answers(folder):
    records = [
        {"id": "x", "image": "a.png", "conversations": turns()},
        {"id": "y", "image": "a.png", "conversations": turns()},
        {"id": "x", "image": ["a.png"], "conversations": turns(answer="No")},
        {"id": 1, "image": "b.png", "conversations": turns(answer=" ")},
        {"id": "1", "conversations": turns("What?", "No")},
        {"conversations": turns("What?")},
    ]
    report = report_of(words(folder, records))

    def numbers(kind: str) -> list[list[int]]:
        return [[entry["number"] for entry in group] for group in report[kind]]

    assert numbers("same_id") == [[0, 2]]
    assert numbers("identical") == [[0, 1]]
    assert numbers("contradicting") == [[0, 2]]
    assert report["answers"]["most_frequent"][:2] == [{"answer": "Yes", "count": 3}, {"answer": "No", "count": 2}]
    assert (report["answers"]["total"], report["answers"]["distinct"], report["answers"]["rest"]) == (6, 3, 0)
    assert [entry["number"] for entry in report["empty_answers"]] == [3]
    assert report["would_fail"] == 0


def test_warnings(folder, capsys):
    records = [
        {"id": "mark", "conversations": turns()},
        {"id": "both", "image": "a.png", "video": "film", "conversations": turns()},
        {"id": "role", "conversations": [*turns("Hello"), {"from": "bot", "value": "Hi"}]},
        {"id": "start", "image": "a.png", "conversations": [turns()[1], *turns()]},
        {"id": "end", "image": "a.png", "conversations": [*turns(), turns("And?")[0]]},
        {"id": "silent", "image": "a.png", "conversations": turns("<image>")},
        {"id": "blind", "image": "a.png", "conversations": turns()[:1]},
    ]
    code, text, _ = run(words(folder, records), capsys)
    assert (code, text.splitlines()[-1]) == (0, "ready to train")
    report = report_of(words(folder, records))
    said = {entry["id"]: warning for warning, entries in report["warnings"].items() for entry in entries}
    parts = {
        "mark": "read as text",
        "both": "video is not used",
        "role": "turns from 'bot'",
        "start": "left out",
        "end": "do not alternate",
        "silent": "no text",
        "blind": "no turn is an answer",
    }
    assert said.keys() == parts.keys()
    assert all(part in said[name] and said[name] in text for name, part in parts.items())


def test_what_training_logs_is_a_warning(folder):
    record = {"id": "r", "image": ["a.png", "b.png"], "conversations": turns("<image><image>\nWhat?")}
    report = report_of(words(folder, [record], version="plain"))
    [entries] = [entries for what, entries in report["warnings"].items() if "conversation template shows" in what]
    assert entries[0]["message"] == "the conversation template shows only the first 1 of 2 images"


def test_exit_codes_and_the_report(folder, capsys):
    output = folder / "report.json"
    code, text, _ = run(words(folder, everything(), "--output", output, "--show", 2, **BOTH), capsys)
    assert (code, text.splitlines()[-1]) == (1, f"training would fail on {len(BAD)} of {len(everything())} records")
    assert "... and 3 more" in text and "none.mp4" not in text
    report = json.loads(output.read_text())
    assert len(found(report, "media")) == 5
    assert report["settings"]["model_max_length"] == 400 and report["settings"]["version"] == "qwen_1_5"
    assert report["lengths"]["cut"] == 3 and len(found(report, "cut")) == 2
    assert "--model_max_length 400 cuts 3 records, 2 of them with their answer" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model-path", "/nowhere"], "--model-path /nowhere"),
        (["--image-aspect-ratio", "tall"], "--image_aspect_ratio 'tall' is not supported"),
        (["--image-aspect-ratio", "anyres"], "needs --image_grid_pinpoints"),
        (["--version", "qwen_9"], "'qwen_9' is not a conversation template"),
        (["--model-max-length", "0"], "--model_max_length 0 must be at least 1"),
        (["--model-max-length", "many"], "invalid int value"),
        (["--modle-path", "x"], "unrecognized arguments: --modle-path"),
        (["--image-folder", "/nowhere"], "--image-folder /nowhere: no such folder"),
        (["--output", "/nowhere/report.json"], "--output /nowhere/report.json: no such folder"),
        (["--show", "-1"], "--show -1 must be at least 0"),
        (["/nowhere.json"], "/nowhere.json does not exist"),
    ],
)
def test_wrong_flags_and_files(folder, capsys, more, message):
    code, text, error = run([*words(folder, [GOOD["one"]], model=None), *more], capsys)
    assert (code, text) == (2, "")
    assert message in error


def test_files_that_cannot_be_used(folder, capsys):
    assert run(words(folder, []), capsys)[0] == 2
    assert run(words(folder, [3]), capsys)[0] == 2
    bare = folder / "bare"
    bare.mkdir()
    shutil.copy(TINY / "config.json", bare)
    code, _, error = run(words(folder, [GOOD["one"]], model=bare), capsys)
    assert code == 2 and f"error: {bare}: has no tokenizer" in error


def test_all_forms_of_data(folder, capsys):
    for name in "pq":
        (folder / f"{name}.json").write_text(json.dumps([GOOD["one"] | {"id": name}, GOOD["wide"]]))
    (folder / "r.jsonl").write_text("\n".join(json.dumps(GOOD["one"] | {"id": k}) for k in range(4)))
    mixture = {"datasets": [{"json_path": str(folder / "r.jsonl"), "sampling_strategy": "first:3"}]}
    (folder / "m.yaml").write_text(json.dumps(mixture))
    files = [str(folder / name) for name in ("{p,q}.json", "r.jsonl", "m.yaml")]
    report = report_of([*files, "--image-folder", str(folder)])
    assert [entry["records"] for entry in report["files"]] == [2, 2, 4, 3]
    assert report["records"] == 11
    assert {place["data"] for group in report["same_id"] for place in group} == set(files[1:])
    (folder / "q.json").write_text(json.dumps([{"id": "bad"}]))
    code, text, _ = run([*files, "--image-folder", str(folder)], capsys)
    assert code == 1 and f"{files[0]}: record 'bad' (number 2): no `conversations`" in text


@pytest.mark.parametrize("name", [pytest.param("scan", marks=pytest.mark.slow), "figure", "chart"])
def test_demo_sets_pass(name, capsys):
    command = [f"{DEMO / name}/{{train,val,test}}.json", "--image-folder", str(DEMO / name), "--model-path", str(TINY)]
    command += ["--model-max-length=512", "--train-on-answers-only", *(f"--{k}={v}" for k, v in ANYRES.items())]
    code, text, _ = run(command, capsys)
    assert (code, text.splitlines()[-1]) == (0, "ready to train")


def test_same_flags_as_training():
    """Every flag means what it means to train.py, where it exists under the same name."""
    argv = ["--data_path", "x.json", "--model_name_or_path", str(TINY), "--frames_upbound", "32"]
    argv += ["--train_on_answers_only", "True", "--image_folder", "d"]
    ours = check._run_arguments(
        check._parser().parse_args(
            [
                "x.json",
                "--model-path",
                str(TINY),
                "--frames_upbound",
                "32",
                "--train-on-answers-only",
                "--image-folder",
                "d",
            ]
        )
    )
    theirs = parse_arguments(argv)
    take_from_checkpoint(*theirs[:2], read_config(TINY))
    assert ours[0].mm_patch_merge_type == "spatial_unpad"
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert vars(mine) | {"given": ()} == vars(other) | {"given": ()}


def test_numbers_of_lengths():
    numbers = summarise([*range(1, 101)], 90)
    assert (numbers["min"], numbers["median"], numbers["percentile_95"], numbers["max"]) == (1, 50, 95, 100)
    assert numbers["cut"] == 10
    assert sum(entry["records"] for entry in numbers["histogram"]) == 100
    assert summarise([7], 7)["histogram"] == [{"from": 7, "to": 7, "records": 1}]
    lines = bars(histogram([1] * 80 + [30]), 29)
    assert "█" * 40 + " 80" in lines[0] and lines[-1].endswith("█ 1  <- --model_max_length")
    assert not any("model_max_length" in line for line in bars(histogram([1, 30]), 30))


def test_half_a_character_is_named_in_the_report(folder, capsys):
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "\udc00"}]
    command = words(folder, [{"id": "\ud800", "conversations": turns}, GOOD["text"]])
    code, _, err = run([*command, "--output", str(folder / "report.json")], capsys)
    assert (code, "Traceback" in err) == (1, False)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    turn, identifier = report["problems"]["turns"]["found"]
    assert turn["id"] == identifier["id"] == "\ud800" and report["would_fail"] == 1
    assert "turn 1 has half a character" in turn["message"] and "`id` has half" in identifier["message"]
