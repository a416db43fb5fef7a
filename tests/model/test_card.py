"""README.md of saved models: what it says, that the Hub reads it, and that nobody's words are lost."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from llava.mezo.durable import follow_umask
from llava.model.card import CARD_FILE, history_of, is_ours, sections, write_card

HUB = "lmms-lab/llava-onevision-qwen2-0.5b-si"
HISTORY = sections({"data": "`a.json`", "adapter": None}, {"before": 0.25, "after": 0.5}, "On `b.json`.")


def folder_of(root: Path, *files: str, **config: object) -> Path:
    folder = root / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_qwen"} | config))
    for name in files:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("files", "config", "library", "use"),
    [
        (["model.safetensors"], {}, "llava", "--model-path mine --image"),
        (["mm_projector.safetensors"], {}, "llava", f"--model-path mine --model-base {HUB}"),
        (["adapter_config.json", "adapter_model.safetensors"], {}, "peft", f'"mine", "{HUB}", "llava", torch_dtype'),
        (["quantized_scales.safetensors"], {"quantization_config": {"load_in_4bit": True}}, "llava", "load_4bit=True"),
        (
            ["model.safetensors"],
            {"model_type": "llava_onevision", "vision_config": {}, "text_config": {}},
            "transformers",
            'AutoModelForImageTextToText.from_pretrained("mine")',
        ),
    ],
    ids=str,
)
def test_what_lies_there_says_how_it_is_used(
    files: list[str], config: dict[str, object], library: str, use: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, *files, **config)
    write_card(folder, HUB, HISTORY, ["mezo", "lora"])
    text = (folder / CARD_FILE).read_text()
    data = ModelCard(text).data.to_dict()  # as the Hub reads it
    assert data == {
        "library_name": library,
        "pipeline_tag": "image-text-to-text",
        "base_model": HUB,
        "tags": ["llava", "mezo", "lora"],
    }
    assert use in text and "| before | 25.0 % |" in text and "adapter |" not in text
    assert f"That of the base model, `{HUB}`" in text
    assert history_of(str(folder)) == (HISTORY, ["llava", "mezo", "lora"])


def test_a_base_on_the_disk_is_named_without_its_place_and_gives_its_licence(tmp_path: Path) -> None:
    base = tmp_path / "some" / "base"
    base.mkdir(parents=True)
    (base / CARD_FILE).write_text(f"---\nlicense: apache-2.0\nbase_model: {HUB}\n---\nA model\n")
    folder = folder_of(tmp_path, "model.safetensors")
    write_card(folder, str(base))
    text = (folder / CARD_FILE).read_text()
    assert str(tmp_path) not in text and "made from `base`" in text
    assert ModelCard(text).data.to_dict().items() >= {"license": "apache-2.0", "base_model": HUB}.items()
    assert "apache-2.0, as the card of the base model, `base`, says." in text
    (base / CARD_FILE).write_text("---\nlicense: [\n---\n")
    write_card(folder, str(base))
    text = (folder / CARD_FILE).read_text()
    assert "license" not in ModelCard(text).data.to_dict() and "base_model" not in ModelCard(text).data.to_dict()


def test_what_somebody_wrote_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path, "model.safetensors")
    card = folder / CARD_FILE
    write_card(folder, HUB)
    write_card(folder, "other/base")
    text = card.read_text()
    assert is_ours(text) and "other/base" in text
    for theirs in (text.replace("## Use", "## How"), text + "One line more\n", "# Mine\n", ""):
        card.write_text(theirs)
        with caplog.at_level(logging.INFO):
            write_card(folder, HUB)
        assert card.read_text() == theirs and "README.md is kept" in caplog.text
        assert history_of(str(folder)) == ("", [])
        caplog.clear()


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_get_the_mode_of_new_ones(umask: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = [tmp_path / "x", tmp_path / "a" / "y"]
    before = os.umask(umask)
    try:
        for file in files:
            file.touch(0o600)
        follow_umask(*files)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
    assert sorted(tmp_path.rglob("*")) == sorted([*files, tmp_path / "a"])
