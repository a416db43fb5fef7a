"""`python -m llava.model.convert`: the same model in plain transformers, and the same files on the way back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_llava import SMALL_QWEN, SMALL_TOWER, SMALL_VISION
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
)

from llava.errors import InputError
from llava.eval.generation import Answerer, Question, load_model
from llava.mm_utils import process_anyres_image
from llava.model import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.convert import convert, main
from llava.model.hf import weights
from llava.model.hf.agreement import check_agreement
from llava.model.own_settings import read_config

TOKENS = 903
"""Of the tokenizer: without a row to spare, so that converting has to add some."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    """A folder with `ours`, a small checkpoint; `theirs`, made of it; and `back`, made of that."""
    root = tmp_path_factory.mktemp("convert")
    torch.manual_seed(0)
    settings = SMALL_QWEN | SMALL_VISION | {"vocab_size": TOKENS, "mm_newline_position": "one_token"}
    model = LlavaQwenForCausalLM(LlavaQwenConfig(**settings, rope_theta=5e5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # logits and answers that depend on the pictures
            if "norm" not in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(root / "ours")
    AutoTokenizer.from_pretrained(golden / "tokenizer_qwen").save_pretrained(root / "ours")
    config = json.loads((root / "ours/config.json").read_text())
    config |= {"conversation_template": "qwen_2_5", "tokenizer_model_max_length": 1024, "of_nobody": [1, None]}
    (root / "ours/config.json").write_text(json.dumps(config))
    convert(str(root / "ours"), root / "theirs", verify=False)
    convert(str(root / "theirs"), root / "back", verify=False)
    return root


@dataclass
class Both:
    """Our model and theirs, with what each needs."""

    ours: tuple[Any, Any, Any]
    theirs: Any
    tokenizer: Any
    processor: Any


@pytest.fixture(scope="module")
def both(folders: Path) -> Both:
    theirs = AutoModelForImageTextToText.from_pretrained(folders / "theirs", dtype=torch.float32).eval()
    return Both(
        load_model(str(folders / "ours"), None, "float32"),
        theirs,
        AutoTokenizer.from_pretrained(folders / "theirs"),
        LlavaOnevisionImageProcessorPil.from_pretrained(folders / "theirs"),
    )


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(sum(map(sum, sizes)))
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(small, sizes, strict=True)]


INPUTS: dict[str, tuple[str, list[tuple[int, int]]]] = {
    "one image": ("image", [(40, 90)]),
    "one image of one tile": ("image", [(20, 20)]),
    "one image, made smaller": ("image", [(100, 90)]),
    "two images": ("image", [(64, 32), (32, 65)]),
    "video": ("video", [(50, 40)] * 3),
    "text": ("image", []),
}


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_logits_and_greedy_tokens_are_the_same(name: str, both: Both, tmp_path: Path) -> None:
    """From pictures and messages: through our own functions, and through their tokenizer, template and processor."""
    kind, sizes = INPUTS[name]
    media = pictures(*sizes)
    entries = 1 if kind == "video" else len(media)
    chat = [{"role": "user", "content": [*[{"type": kind}] * entries, {"type": "text", "text": "What is it?"}]}]
    prompt = both.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    model, tokenizer, processor = both.ours
    files = [tmp_path / f"{number}.png" for number in range(entries)]
    for file, image in zip(files, media):  # noqa: B905 - of a video one is enough
        image.save(file)
    answerer = Answerer(model, tokenizer, processor)
    question = Question("q", [("<image>\n" * entries + "What is it?", None)], files)
    assert prompt.replace("<video>", "<image>") == answerer.prompt(question)
    ids = answerer._prompt_ids(question)[None]
    ours: dict[str, Any] = answerer._image_arguments([question])
    theirs: dict[str, Any] = {}
    if kind == "video":
        frames = torch.cat([processor.preprocess(image, return_tensors="pt")["pixel_values"] for image in media])
        ours = {"images": [frames], "image_sizes": [media[0].size], "modalities": ["video"]}
        theirs = {"pixel_values_videos": frames[None]}
    elif media:
        theirs = dict(both.processor([media], return_tensors="pt"))
    expected = model(ids, **ours).logits
    visual = expected.shape[1] - ids.shape[1] + entries
    theirs["input_ids"] = written_out(both, prompt, f"<{kind}>", visual, theirs)
    logits = both.theirs(**theirs).logits
    assert logits.shape[1] == expected.shape[1]
    torch.testing.assert_close(logits[..., :TOKENS], expected, atol=1e-4, rtol=0)
    greedy = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": tokenizer.pad_token_id}
    answer = both.theirs.generate(**theirs, **greedy)[0, logits.shape[1] :]
    assert answer.tolist() == model.generate(ids, **ours, **greedy)[0].tolist()


def written_out(both: Both, prompt: str, mark: str, visual: int, pixels: dict[str, Any]) -> torch.Tensor:
    """Ids with as many marks as there are visual tokens; counted by hand, since their processor needs torchvision."""
    counts = [visual]
    if prompt.count(mark) > 1:
        counts = [(SMALL_TOWER["image_size"] // SMALL_TOWER["patch_size"]) ** 2 + 1] * prompt.count(mark)
        assert sum(counts) == visual
        assert pixels["batch_num_images"].tolist() == [len(counts)]
    for count in counts:
        prompt = prompt.replace(mark, "\0" * count, 1)
    return both.tokenizer(prompt.replace("\0", mark), return_tensors="pt").input_ids


@pytest.mark.parametrize("size", [(40, 90), (31, 33), (100, 30), (96, 96)])
def test_pixels_are_the_same(size: tuple[int, int], both: Both) -> None:
    (image,) = pictures(size)
    model, _, processor = both.ours
    expected = process_anyres_image(image, processor, model.config.image_grid_pinpoints)
    found = both.processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_several_turns_and_a_system_text(both: Both) -> None:
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Which?"}, {"type": "image"}]},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and "}, {"type": "video"}]},
    ]
    assert both.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhich?<|im_end|>\n"
        "<|im_start|>assistant\nThis.<|im_end|>\n<|im_start|>user\n<image>\nand <video>\n<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_what_lies_in_the_folder(folders: Path, both: Both) -> None:
    config = json.loads((folders / "theirs/config.json").read_text())
    image, video = (both.tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<video>"))
    assert (config["image_token_index"], config["video_token_index"]) == (image, video) == (TOKENS, TOKENS + 1)
    assert config["text_config"]["vocab_size"] == TOKENS + 2
    assert config["text_config"]["rope_theta"] == 5e5  # as version 4 spells it
    assert both.tokenizer.decode([5, image, video], skip_special_tokens=True) == both.tokenizer.decode([5])
    assert both.theirs.generation_config.suppress_tokens == [image, video]
    processor = json.loads((folders / "theirs/processor_config.json").read_text())
    assert (processor["num_image_tokens"], processor["vision_aspect_ratio"]) == (16, "anyres_max_4")
    assert (folders / "theirs/video_preprocessor_config.json").is_file()
    names = set(load_file(folders / "theirs/model.safetensors"))
    assert {name.split(".")[0] for name in names} == {
        "language_model",
        "vision_tower",
        "multi_modal_projector",
        "image_newline",
    }
    assert all(name.startswith("vision_tower.vision_model.") for name in names if name.startswith("vision_tower"))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_tensors(first: Path, second: Path) -> bool:
    one, two = tensors_of(first), tensors_of(second)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


def test_the_way_back_gives_the_same_files(folders: Path) -> None:
    assert same_tensors(folders / "ours", folders / "back")
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        first, second = (json.loads((folders / folder / name).read_text()) for folder in ("ours", "back"))
        assert first == second, name
    first, second = (AutoTokenizer.from_pretrained(folders / folder) for folder in ("ours", "back"))
    assert first.get_vocab() == second.get_vocab()
    assert first.all_special_tokens == second.all_special_tokens
    assert first.chat_template == second.chat_template


def test_what_was_changed_in_transformers_comes_back(folders: Path, both: Both, tmp_path: Path) -> None:
    """Also: saved by the library, whose names and spelling of config.json are others than those written here."""
    model = AutoModelForImageTextToText.from_pretrained(folders / "theirs")
    model.config.vision_aspect_ratio = "anyres_max_9"
    model.config.text_config.attention_dropout = 0.25
    with torch.no_grad():
        model.model.image_newline.fill_(2)
    model.save_pretrained(tmp_path / "trained")
    both.tokenizer.save_pretrained(tmp_path / "trained")
    shutil.copy(folders / "theirs/preprocessor_config.json", tmp_path / "trained")
    convert(str(tmp_path / "trained"), tmp_path / "back", verify=False)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (folders / "ours", tmp_path / "back")
    )
    changed = {key: after[key] for key in after if after[key] != before.get(key)}
    assert changed == {"image_aspect_ratio": "anyres_max_9", "attention_dropout": 0.25}
    assert before.keys() == after.keys()
    tensors = load_file(tmp_path / "back/model.safetensors")
    assert tensors["model.image_newline"].unique().tolist() == [2]
    assert len(tensors["model.embed_tokens.weight"]) == TOKENS


def test_their_folder_is_read_as_it_is(folders: Path, both: Both, tmp_path: Path) -> None:
    """By `load_pretrained_model` and all that reads settings; saved, it is one of ours."""
    model, _, processor = load_model(str(folders / "theirs"), None, "float32")
    ids = torch.tensor([[5, -200, 6]])
    picture = process_anyres_image(pictures((40, 90))[0], processor, model.config.image_grid_pinpoints)
    inputs = {"images": [picture], "image_sizes": [(40, 90)]}
    with torch.no_grad():
        expected = both.ours[0](ids, **inputs).logits
        torch.testing.assert_close(model(ids, **inputs).logits[..., :TOKENS], expected)
    assert model.config.image_aspect_ratio == read_config(folders / "theirs")["image_aspect_ratio"] == "anyres_max_4"
    assert read_config(folders / "theirs")["conversation_template"] == "qwen_2_5"
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(load_file(folders / "ours/model.safetensors"))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava_qwen"


class TestTheirOwn:
    """A folder in their format that was not made here, as those at llava-hf."""

    @pytest.fixture(scope="class")
    def published(self, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("published")
        torch.manual_seed(1)
        config = LlavaOnevisionConfig(
            vision_config=SMALL_TOWER | {"vision_use_head": False},
            text_config=SMALL_QWEN | {"model_type": "qwen2", "tie_word_embeddings": True},
            image_token_index=903,
            video_token_index=904,
            image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [32, 96]],
            vision_aspect_ratio="anyres_max_4",
            vision_feature_layer=-2,  # the last layer of the tower has no use
        )
        LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(folders / "theirs").save_pretrained(folder)
        LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3
        ).save_pretrained(folder)
        return folder

    def test_there_and_back(self, published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "llava")
        convert(str(published), tmp_path / "ours", verify=True)
        assert "layers of the tower whose output is not used" in caplog.text
        config = json.loads((tmp_path / "ours/config.json").read_text())
        assert config["image_grid_pinpoints"][1] == [64, 32]  # width first
        assert config["mm_image_processor_config"]["image_std"] == [0.25] * 3
        assert config["mm_vision_tower_config"]["num_hidden_layers"] == 3
        assert config["vocab_size"] == 908
        convert(str(tmp_path / "ours"), tmp_path / "theirs", verify=False)
        assert max(check_agreement(str(tmp_path / "ours"), str(tmp_path / "theirs"), False).values()) < 1e-5
        again = json.loads((tmp_path / "theirs/config.json").read_text())
        assert again["image_grid_pinpoints"] == [[32, 32], [32, 64], [64, 32], [32, 96]]
        assert again["image_token_index"] == 903

    def test_spare_layers_have_to_go_first(self, published: Path) -> None:
        with pytest.raises(InputError, match=r"layers whose output is not used.* `python -m llava\.model\.convert"):
            load_model(str(published), None, "float32")

    def test_the_usual_tower_goes_by_its_name(self, published: Path, tmp_path: Path) -> None:
        values = json.loads((published / "config.json").read_text())
        so400m = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304}
        so400m |= {"num_attention_heads": 16, "num_hidden_layers": 26, "image_size": 384, "patch_size": 14}
        (tmp_path / "config.json").write_text(
            json.dumps(values | {"vision_config": so400m, "vision_feature_layer": -1})
        )
        config = read_config(tmp_path)
        assert config["mm_vision_tower"] == "google/siglip-so400m-patch14-384"
        assert "mm_vision_tower_config" not in config

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy 'default'"),
            ({"vision_feature_layer": [-1, -2]}, "vision_feature_layer [-1, -2]"),
            ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
            ({"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio 'anyres'"),
            ({"text_config": {"model_type": "llama"}}, "text_config.model_type 'llama'"),
            ({"model_type": "llava_next"}, "model_type 'llava_next', which is not supported"),
            ({"llava_checkpoint": "mine"}, "an entry llava_checkpoint that was not written here"),
            ({"vision_feature_layer": -9}, "vision_feature_layer -9 of a tower with 3 layers"),
        ],
        ids=lambda value: None if isinstance(value, str) else "-".join(value),
    )
    def test_what_ours_cannot_have(self, changes: dict[str, Any], said: str, published: Path, tmp_path: Path) -> None:
        shutil.copytree(published, tmp_path / "from")
        values = json.loads((published / "config.json").read_text())
        (tmp_path / "from/config.json").write_text(json.dumps(values | changes))
        with pytest.raises(InputError) as error:
            convert(str(tmp_path / "from"), tmp_path / "to")
        assert said in str(error.value)
        assert not (tmp_path / "to").exists()


def changed(folders: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of `ours` with other entries in its config.json."""
    folder = tmp_path / "changed"
    shutil.copytree(folders / "ours", folder)
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat' (allowed: 'spatial_unpad')"),
        ({"mm_patch_merge_type": "spatial_unpad_nobase"}, "mm_patch_merge_type 'spatial_unpad_nobase'"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio 'pad' (allowed: 'anyres', 'anyres_max_N')"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end true"),
        ({"conversation_template": "v1"}, "conversation template 'v1'"),
        ({"mm_resampler_type": "perceiver"}, "perceiver"),
        ({"s2": True}, "s2"),
        ({"add_faster_video": True, "mm_newline_position": "grid"}, "add_faster_video true"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
        ({"mm_newline_position": "grid"}, "mm_newline_position 'grid' (allowed: 'one_token')"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride 4 (allowed: 2)"),
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode 'average'"),
        ({"model_type": "llava_llama"}, "language model 'llava_llama' (allowed: 'llava_qwen')"),
        ({"mm_vision_tower": None}, "names no mm_vision_tower"),
        ({"intermediate_size": 64}, "by config.json"),
        ({"num_hidden_layers": 1}, "have no place in the model"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(f"{key}={one}" for key, one in value.items()),
)
def test_what_theirs_cannot_have(changes: dict[str, Any], said: str, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        convert(str(changed(folders, tmp_path, **changes)), tmp_path / "to")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "to").exists()


def test_all_that_cannot_be_expressed_is_said_at_once(folders: Path, tmp_path: Path) -> None:
    more = {"image_aspect_ratio": "square", "image_grid_pinpoints": None, "mm_projector_type": "linear"}
    source = changed(folders, tmp_path, **more, mm_newline_position="grid")
    with pytest.raises(InputError) as error:
        convert(str(source), tmp_path / "to")
    named = ("image_aspect_ratio 'square'", "no image_grid_pinpoints", "mm_projector_type 'linear'")
    assert all(said in str(error.value) for said in (*named, "mm_newline_position 'grid'", "give --images-only"))
    with pytest.raises(InputError) as error:
        convert(str(source), tmp_path / "to", images_only=True)
    assert all(said in str(error.value) for said in named) and "mm_newline_position" not in str(error.value)


def test_other_videos_can_be_accepted(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The settings come back; pictures and text agree."""
    caplog.set_level("INFO", "llava")
    source = changed(folders, tmp_path, mm_newline_position="grid", mm_spatial_pool_stride=4)
    with pytest.raises(InputError, match="--images-only"):
        convert(str(source), tmp_path / "theirs")
    convert(str(source), tmp_path / "theirs", verify=True, images_only=True)
    assert "several images" in caplog.text
    assert ", video" not in caplog.text
    with pytest.raises(InputError, match=f"than in {tmp_path}/back: .*; --images-only leaves videos out"):
        convert(str(tmp_path / "theirs"), tmp_path / "back")  # and no folder that is gone by then
    convert(str(tmp_path / "theirs"), tmp_path / "back", verify=False)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((source / "config.json").read_text())


def test_plain_anyres_never_shrinks(folders: Path, tmp_path: Path) -> None:
    source = changed(folders, tmp_path, image_aspect_ratio="anyres")
    convert(str(source), tmp_path / "theirs", verify=True)
    assert json.loads((tmp_path / "theirs/config.json").read_text())["vision_aspect_ratio"] == "anyres_max_9"
    assert read_config(tmp_path / "theirs")["image_aspect_ratio"] == "anyres"


def test_parts_of_a_model_are_named(folders: Path, tmp_path: Path) -> None:
    lora, projector = tmp_path / "lora", tmp_path / "projector"
    for folder in (lora, projector):
        folder.mkdir()
        shutil.copy(folders / "ours/config.json", folder)
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"model.mm_projector.0.weight": torch.zeros(1)}, projector / "mm_projector.safetensors")
    for folder in (lora, projector):
        with pytest.raises(InputError, match=r"a part of a model .* `python -m llava\.model\.merge"):
            convert(str(folder), tmp_path / "to")
    (lora / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    with pytest.raises(InputError, match=r"of kind PREFIX_TUNING does not become weights"):
        convert(str(lora), tmp_path / "to")


def test_sources_and_targets(folders: Path, tmp_path: Path) -> None:
    ours = str(folders / "ours")
    with pytest.raises(InputError, match="is not an empty folder"):
        convert(ours, folders / "back")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--to .*/file/to cannot be written \(.+\)"):
        convert(ours, tmp_path / "file/to", verify=False)
    with pytest.raises(InputError, match="no such folder"):
        convert(str(tmp_path / "nothing"), tmp_path / "to")
    with pytest.raises(InputError, match=r"has no config\.json"):
        convert(str(tmp_path), tmp_path / "to")
    with pytest.raises(InputError, match="the hub does not give it"):
        convert("llava-hf/no-such-model", tmp_path / "to")
    bare = changed(folders, tmp_path)
    for file in [*bare.glob("*token*"), *bare.glob("vocab*"), *bare.glob("merges*")]:
        file.unlink()
    with pytest.raises(InputError, match=r"its tokenizer cannot be loaded"):
        convert(str(bare), tmp_path / "to")
    (bare / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        convert(str(bare), tmp_path / "to")
    (bare / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        convert(str(bare), tmp_path / "to")


def test_a_conversion_that_differs_is_not_kept(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.model.hf.folders.their_name", lambda name: weights_swapped(name))
    (tmp_path / "to").mkdir()
    with pytest.raises(InputError, match=r"do not give the same logits: one image .* Nothing is written"):
        convert(str(folders / "ours"), tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
    assert not any((tmp_path / "to").iterdir())


def weights_swapped(name: str) -> str:
    from llava.model.hf.names import their_name

    swapped = {"layers.0.mlp.gate_proj": "layers.0.mlp.up_proj", "layers.0.mlp.up_proj": "layers.0.mlp.gate_proj"}
    for one, other in swapped.items():
        if one in name:
            return their_name(name.replace(one, other))
    return their_name(name)


def test_large_checkpoints_are_written_in_shards(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.write_shards, "__defaults__", (60_000,))
    convert(str(folders / "ours"), tmp_path / "theirs", verify=True)
    files = sorted(file.name for file in (tmp_path / "theirs").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    convert(str(tmp_path / "theirs"), tmp_path / "back", verify=False)
    assert same_tensors(tmp_path / "back", folders / "ours")


def test_checkpoints_without_the_tower(folders: Path, tmp_path: Path) -> None:
    source = changed(folders, tmp_path)
    tensors = load_file(source / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "vision_tower" not in k}, source / "model.safetensors")
    with pytest.raises(InputError, match="the vision tower's weights are not in the checkpoint"):
        convert(str(source), tmp_path / "theirs")


def test_older_weight_files(folders: Path, tmp_path: Path) -> None:
    source = changed(folders, tmp_path)
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    convert(str(source), tmp_path / "theirs", verify=False)
    assert same_tensors(tmp_path / "theirs", folders / "theirs")


def test_the_command(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    main(["--from", str(folders / "ours"), "--to", str(tmp_path / "theirs")])
    log = capsys.readouterr().err
    assert "is a LLaVA checkpoint; Hugging Face's LlavaOnevisionForConditionalGeneration is written to" in log
    assert "largest difference of logits" in log
    said = f"error: --to {tmp_path / 'theirs'} is not an empty folder; choose another one, or remove it first\n"
    assert refused(main, ["--from", str(folders / "ours"), "--to", str(tmp_path / "theirs")]) == said
    errors = refused(
        main, ["--from", str(folders / "theirs"), "--to", str(tmp_path / "b"), "--no-verify", "--push_to_hub", "me/it"]
    ).splitlines()
    assert errors[-1].startswith("error: --push_to_hub me/it: ")
    assert "complete" in errors[-1]
