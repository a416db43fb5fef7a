"""What can be wrong with a model folder: by name, how it comes about and what the message has to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
HF_LLAVA = "of Hugging Face's classes only 'llava_onevision'"

Tensors = dict[str, torch.Tensor]
Spoil = Callable[[Path], object]


def edit_config(folder: Path, **changes: object) -> None:
    """Set keys of config.json; None drops one."""
    values = json.loads((folder / "config.json").read_text())
    values |= changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Write the weights that `change` makes of those there."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def write(name: str, content: str | bytes) -> Spoil:
    """A file with other content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def config(**changes: object) -> Spoil:
    """Other keys in config.json."""
    return lambda folder: edit_config(folder, **changes)


def other_format(model_type: str, architecture: str) -> Spoil:
    """A config.json of transformers' own class of a model with images."""
    values = {"model_type": model_type, "architectures": [architecture], "text_config": {"model_type": "qwen2"}}
    return write("config.json", json.dumps(values))


def without(*names: str) -> Spoil:
    """Files that are missing."""

    def spoil(folder: Path) -> None:
        for name in names:
            for path in folder.glob(name):
                path.unlink()

    return spoil


def cut(folder: Path) -> None:
    """The end of the weights is missing."""
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) * 2 // 3])


def lora(folder: Path) -> None:
    """A LoRA run in place of a whole model."""
    (folder / WEIGHTS).unlink()
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "the/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


def projector(folder: Path) -> None:
    """A projector-only run in place of a whole model."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file(
        {key: tensor for key, tensor in tensors.items() if "projector" in key}, folder / "mm_projector.safetensors"
    )


def shards(folder: Path, index: str | None = None) -> None:
    """Weights in two files with an index, or with what is given in its place."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = {f"model-0000{part}-of-00002.safetensors": sorted(tensors)[part - 1 :: 2] for part in (1, 2)}
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, names in files.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}) if index is None else index)


def shard_gone(folder: Path) -> None:
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_pointer(folder: Path) -> None:
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").write_text(POINTER)


def shards_alone(folder: Path) -> None:
    shards(folder)
    (folder / INDEX).unlink()


def pickled(folder: Path) -> None:
    """Torch's format, with an object that is no tensor."""
    (folder / WEIGHTS).unlink()
    torch.save({"a": Path("x")}, folder / "pytorch_model.bin")


def torch_file_cut(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


def pieces(folder: Path) -> None:
    """What DeepSpeed keeps of a run."""
    (folder / WEIGHTS).unlink()
    (folder / "global_step4").mkdir()


# Shows before anything is loaded.
AT_ONCE: dict[str, tuple[Spoil, str]] = {
    "HF onevision": (other_format("llava_onevision", "LlavaOnevisionForConditionalGeneration"), "of two models"),
    "HF llava": (other_format("llava", "LlavaForConditionalGeneration"), HF_LLAVA),
    "HF llava_next": (other_format("llava_next", "LlavaNextForConditionalGeneration"), HF_LLAVA),
    "another model with images": (other_format("qwen2_vl", "Qwen2VLForConditionalGeneration"), "qwen2_vl is not supp"),
    "llava_mistral": (
        config(model_type="llava_mistral", architectures=["LlavaMistralForCausalLM"]),
        "llava_mistral.*is not supported; supported: Qwen2",
    ),
    "no language model": (
        write("config.json", '{"model_type": "siglip_vision_model"}'),
        "siglip_vision_model', which is no language model",
    ),
    "model_type a number": (config(model_type=5), "model_type 5; it must be a name"),
    "LoRA folder": (lora, "adapter lies there.*the/base"),
    "projector folder": (projector, "a projector alone lies there"),
    "no weights": (without(WEIGHTS), "holds no complete model: it has none of model.safetensors"),
    "weights cut": (cut, r"model\.safetensors: cannot be read .* cut off"),
    "weights empty": (write(WEIGHTS, ""), r"model\.safetensors: the file is empty"),
    "weights pointer": (write(WEIGHTS, POINTER), r"model\.safetensors: a git-lfs pointer"),
    "weights an error page": (write(WEIGHTS, "<html>404</html>"), r"model\.safetensors: cannot be read"),
    "config pointer": (write("config.json", POINTER), r"config\.json: a git-lfs pointer"),
    "tokenizer pointer": (write("tokenizer.json", POINTER), r"tokenizer\.json: a git-lfs pointer"),
    "config not JSON": (write("config.json", '{"model_type":\n oops}'), r"config\.json: not valid JSON, line 2"),
    "config no object": (write("config.json", "[1]"), r"config\.json: holds a JSON list"),
    "config empty": (write("config.json", ""), r"config\.json: the file is empty"),
    "config no text": (write("config.json", b"\xff\xfe\x80"), r"config\.json: cannot be read as JSON"),
    "config without keys": (write("config.json", "{}"), "model_type None"),
    "config width in words": (config(hidden_size="32"), r"config\.json cannot be used .*hidden_size"),
    "config layers and kinds of layers": (
        config(layer_types=["full_attention"]),
        r"config\.json cannot be used .*layer",
    ),
    "vocabulary larger": (config(vocab_size=9999), "vocab_size 9999, but .* 908 rows"),
    "vocabulary smaller": (config(vocab_size=50), "vocab_size 50, but .* 908 rows"),
    "a shard is missing": (shard_gone, "lists model-00002-of-00002.safetensors, which cannot be found"),
    "a shard is a pointer": (shard_pointer, r"model-00002-of-00002\.safetensors: a git-lfs pointer"),
    "shards without index": (shards_alone, "model-00001-of-00002.safetensors, but no index"),
    "index not JSON": (lambda folder: shards(folder, "{"), r"index\.json: not valid JSON"),
    "index a list": (lambda folder: shards(folder, "[]"), r"index\.json: holds a JSON list"),
    "index without places": (lambda folder: shards(folder, "{}"), r"index\.json: has no weight_map"),
    "index with numbers": (lambda folder: shards(folder, '{"weight_map": {"a": 5}}'), "has no weight_map that names"),
    "torch file cut": (torch_file_cut, r"pytorch_model\.bin: cannot be read .* cut off"),
    "DeepSpeed's pieces": (pieces, r"zero_to_fp32\.py"),
    "empty folder": (without("*"), "the folder has no config.json"),
    "quantised without saying how": (
        lambda folder: edit_weights(folder, lambda old: {k: v.to(torch.int8) for k, v in old.items()}),
        "stored as I8, quantised",
    ),
}


def renamed(old: Tensors) -> Tensors:
    """The names of Hugging Face's own format."""
    return {f"language_{key}" if "vision" not in key else key.removeprefix("model."): t for key, t in old.items()}


# Shows when tokenizer and weights are loaded.
ON_LOADING: dict[str, tuple[Spoil, str]] = {
    "no tokenizer": (without("tokenizer*", "vocab*", "merges*"), r"has no tokenizer \(tokenizer\.json"),
    "tokenizer without its vocabulary": (
        lambda folder: (without("tokenizer.json", "merges.txt", "vocab.json")(folder), write("vocab.txt", "a")(folder)),
        r"has no tokenizer: tokenizer\.json, or vocab\.json and merges\.txt is missing",
    ),
    "tokenizer not JSON": (write("tokenizer.json", "{"), "its tokenizer cannot be used"),
    "other objects are pickled": (pickled, r"pytorch_model\.bin: .*other objects are pickled in it, which is not run"),
    "names of another format": (lambda f: edit_weights(f, renamed), "of its weights have no place .*language_model"),
    "a weight too many": (
        lambda f: edit_weights(f, lambda old: {**old, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}),
        r"1 of its weights have no place .*left out: model\.layers\.0\.self_attn\.q_norm\.weight",
    ),
    "a weight is missing": (
        lambda f: edit_weights(f, lambda old: {k: t for k, t in old.items() if k != "model.norm.weight"}),
        r"lacks 1 weights .*: model\.norm\.weight",
    ),
    "a part of the tower is missing": (
        lambda f: edit_weights(f, lambda old: {k: t for k, t in old.items() if "layers.0.mlp.fc1.weight" not in k}),
        "only a part of the vision tower|vision tower of its config.json cannot be used",
    ),
    "a shape differs": (config(intermediate_size=40), r"another shape than its config\.json .*\[32, 48\].*\[32, 40\]"),
    "heads that do not divide": (config(num_attention_heads=7), "shape than its config.json gives them"),
    "projector of no name": (config(mm_projector_type=["x"]), "cannot be used"),
    "tower settings no object": (config(mm_vision_tower_config=[1]), "mm_vision_tower_config is a list"),
}
EVERYTHING = AT_ONCE | ON_LOADING
