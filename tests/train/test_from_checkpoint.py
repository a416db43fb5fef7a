"""Settings of a checkpoint hold where no flag is given, in training and in use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava.errors import InputError
from llava.eval.generation import Answerer
from llava.model.own_settings import own_template, read_config, template_of
from llava.model.vision_settings import copy_settings
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import Arguments, parse_arguments
from llava.train.train import build

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
OWN = {
    "model_type": "llava_qwen",
    "conversation_template": "qwen_2",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_vision_select_layer": -2,
    "mm_use_im_patch_token": False,
    "mm_spatial_pool_stride": 3,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[56, 56], [112, 56]],
    "image_crop_resolution": None,
}


def settled(config: dict[str, Any], *words: str) -> Arguments:
    run = parse_arguments(["--data_path", "x.json", "--output_dir", "out", "--report_to", "none", *words])
    take_from_checkpoint(run[0], run[1], config)
    return run


def test_what_is_not_given_is_the_checkpoints(caplog: pytest.LogCaptureFixture) -> None:
    model_args, data_args, _ = settled(OWN)
    for name, value in OWN.items():
        where = model_args if hasattr(model_args, name) else data_args
        assert getattr(where, name, value) == value, name
    assert (model_args.version, data_args.version) == ("qwen_2", "qwen_2")
    assert not caplog.records


def test_what_is_given_wins_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    words = "--version=qwen_1_5 --mm_patch_merge_type flat --image-aspect-ratio pad --mm_vision_select_layer -2"
    model_args, data_args, _ = settled(OWN, *words.split())
    assert (data_args.version, model_args.mm_patch_merge_type) == ("qwen_1_5", "flat")
    assert data_args.image_aspect_ratio == "pad"
    assert [record.message for record in caplog.records] == [
        "--mm_patch_merge_type flat: the checkpoint was trained with spatial_unpad",
        "--image_aspect_ratio pad: the checkpoint was trained with anyres_max_9",
        "--version qwen_1_5: the checkpoint was trained with qwen_2",
    ]


def test_without_settings_the_defaults_hold(caplog: pytest.LogCaptureFixture) -> None:
    plain = {"model_type": "qwen2"}
    model_args, data_args, _ = settled(plain)
    assert (model_args.version, model_args.mm_patch_merge_type) == ("qwen_1_5", "flat")
    assert data_args.image_aspect_ratio == "square"
    assert settled(plain, "--version", "plain")[1].version == "plain"
    assert not caplog.records
    with pytest.raises(InputError, match=r"--image_aspect_ratio anyres_max_9 needs --image_grid_pinpoints"):
        settled(plain, "--image_aspect_ratio", "anyres_max_9")


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"model_type": "llava_qwen"}, "qwen_1_5"),
        ({"model_type": "qwen2", "conversation_template": "plain"}, "plain"),
        ({"model_type": "llama", "vocab_size": 128_256}, "llava_llama_3"),
        ({"model_type": "llava_llama", "vocab_size": 32_000}, "v1"),
        ({}, "v0"),
    ],
)
def test_template_of_a_family(config: dict[str, Any], template: str, tmp_path: Path) -> None:
    assert own_template(config) == template
    assert own_template(SimpleNamespace(**config)) == template
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert template_of(str(tmp_path)) == template
    assert template_of(str(tmp_path / "adapter"), str(tmp_path)) == template


def test_a_model_trained_with_a_template_answers_in_it(tmp_path: Path) -> None:
    base = shutil.copytree(TINY, tmp_path / "base")
    words = ["--model_name_or_path", str(base), "--attn_implementation", "sdpa"]
    run = settled(read_config(base), *words, "--version", "qwen_2")
    model, tokenizer = build(*run)
    model.save_pretrained(tmp_path / "saved")
    assert read_config(tmp_path / "saved")["conversation_template"] == "qwen_2"
    assert settled(read_config(tmp_path / "saved"), *words)[0].version == "qwen_2"
    assert Answerer(model, tokenizer, None).template == Answerer(model, tokenizer, None, "qwen_2").template


def test_only_a_projector_that_was_asked_for_is_said_to_be_unused(caplog: pytest.LogCaptureFixture) -> None:
    for words, said in (((), False), (("--mm_projector_type", "identity"), True)):
        caplog.clear()
        model_args = settled(read_config(str(TINY)), "--model_name_or_path", str(TINY), *words)[0]
        config = SimpleNamespace(mm_vision_tower=None, mm_projector_type="mlp2x_gelu")
        copy_settings(model_args, config, keep_tower=True, keep_projector=True)
        assert config.mm_projector_type == "mlp2x_gelu"
        assert ("'identity' is not used" in caplog.text) == said and "linear" not in caplog.text


def test_a_mistyped_flag_gets_each_suggestion_once() -> None:
    with pytest.raises(InputError, match=r"unknown flag --image_foldr; did you mean --image_folder or --video_folder"):
        settled({}, "--image_foldr", "x")
