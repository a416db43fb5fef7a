"""`--bits` of the commands that ask a model: the base of a run on 4 or 8 bits is evaluated as it was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava import ask
from llava.eval import accuracy, loading_flags, probe
from llava.model.own_settings import read_config
from llava.model.quantised import quantised_layers, weight_of
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments
from llava.train.parts.saving import save_lora
from llava.train.train import build

pytest.importorskip("bitsandbytes")

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
DATA = Path(__file__).parents[2] / "playground" / "data" / "scan"


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that evaluations load."""
    seen: list[Any] = []
    load = loading_flags.load_model

    def watched(*given: Any) -> Any:
        seen.append(load(*given))
        return seen[-1]

    monkeypatch.setattr(loading_flags, "load_model", watched)
    return seen


def evaluated(folder: Path, name: str, *more: str) -> dict[str, Any]:
    """The summary beside the answers to six records."""
    data, output = folder / "six.json", folder / f"{name}.jsonl"
    data.write_text(json.dumps(json.loads((DATA / "val.json").read_text())[:6]))
    where = ["--data", str(data), "--image-folder", str(DATA), "--output", str(output), "--version", "qwen_1_5"]
    accuracy.main([*where, "--max-new-tokens", "3", *more])
    return dict(json.loads(output.with_suffix(".json").read_text()))


@pytest.mark.parametrize(("bits", "more"), [(4, ("--quant_type", "fp4", "--double_quant", "False")), (8, ())])
def test_before_and_after_are_on_the_base_of_training(
    bits: int, more: tuple[str, ...], models: list[Any], tmp_path: Path
) -> None:
    words = ["--model_name_or_path", str(TINY), "--data_path", "x.json", "--output_dir", "out", "--report_to", "none"]
    words += [
        "--bits",
        str(bits),
        "--adapter",
        "lora",
        "--lora_r",
        "4",
        "--bf16",
        "True",
        "--version",
        "qwen_1_5",
        *more,
    ]
    arguments = parse_arguments(words)
    take_from_checkpoint(arguments[0], arguments[1], read_config(TINY))
    model, tokenizer = build(*arguments)
    run = tmp_path / "llava-run"
    save_lora(model, run)
    tokenizer.save_pretrained(run)
    flags = ["--bits", str(bits), "--torch-dtype", "bfloat16", *(word.replace("_", "-") for word in more)]
    before = evaluated(tmp_path, "before", "--model-path", str(TINY), *flags)
    after = evaluated(tmp_path, "after", "--model-path", str(run), "--model-base", str(TINY), *flags)
    trained = quantised_layers(model)
    for loaded, _, _ in models:
        layers = quantised_layers(loaded)
        assert len(layers) == len(trained) == 28
        for one, other in zip(layers.values(), trained.values(), strict=True):
            assert torch.equal(weight_of(one), weight_of(other))
            assert one.weight.dtype == other.weight.dtype
    assert before["accuracy"] == after["accuracy"]  # the adapter is new, and does nothing
    settings = (before.get("settings") or before)["quantization_config"]
    assert (settings["load_in_4bit"], settings["load_in_8bit"]) == (bits == 4, bits == 8)


def test_other_commands_load_so_too(models: list[Any], tmp_path: Path) -> None:
    ask.main(["--model-path", str(TINY), "--bits", "4", "--max-new-tokens", "1", "What?"])
    records = json.loads((DATA / "val.json").read_text())
    for name, some in (("train", records[:20]), ("test", records[20:26])):
        (tmp_path / f"{name}.json").write_text(json.dumps(some))
    sets = ["--train-data", str(tmp_path / "train.json"), "--data", str(tmp_path / "test.json")]
    where = ["--image-folder", str(DATA), "--output", str(tmp_path / "probe.json"), "--version", "qwen_1_5"]
    probe.main(["--model-path", str(TINY), *sets, *where, "--bits", "8"])
    assert [len(quantised_layers(model)) for model, _, _ in models] == [28, 28]
    assert json.loads((tmp_path / "probe.json").read_text())["settings"]["bits"] == 8


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bits", "2"), "--bits 2: allowed are 4, 8, 16"),
        (("--bits", "4", "--quant-type", "nf8"), "--quant-type nf8: allowed are nf4, fp4"),
        (("--bits", "4", "--double-quant", "maybe"), "--double-quant maybe: allowed are True, False"),
        (("--max-image-pixels", "0"), "error: --max-image-pixels 0 must be at least 1"),
        (("--double-quant", "False"), "--quant-type and --double-quant have no effect with --bits 16"),
    ],
)
def test_values_are_refused(flags: tuple[str, ...], said: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert said in refused(evaluated, tmp_path, "wrong", "--model-path", str(TINY), *flags)
