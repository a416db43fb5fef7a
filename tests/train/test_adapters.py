"""Every kind of adapter: what it trains, and that it loads back and merges."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModelForCausalLM, get_peft_model

from llava.errors import InputError
from llava.model.adapter_kinds import ADAPTERS, FROM_WEIGHTS, LORA_FAMILY, VIRTUAL_TOKENS
from llava.model.builder import load_pretrained_model
from llava.model.merge import merge
from llava.model.own_settings import read_config
from llava.model.tuners.mora import Square, side
from llava.train.flags.adapter_flags import DEFAULTS
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments
from llava.train.parts.saving import adapter_names, save_lora
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, parts_of, trained_parts
from llava.train.train import build

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
UNMERGED = {"prefix", "prompt", "houlsby"}
KINDS = [kind for kind in ADAPTERS if kind != "none"]
WORDS = ["--data_path", "x.json", "--output_dir", "out", "--model_name_or_path", str(TINY), "--report_to", "none"]
WORDS += ["--attn_implementation", "sdpa", "--lora_r", "4"]


def adapted(kind: str, *more: str) -> tuple[Any, Any]:
    run = parse_arguments([*WORDS, "--adapter", kind, *more])
    take_from_checkpoint(run[0], run[1], read_config(TINY))
    return build(*run)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(20, 60)[None], use_cache=False).logits


def with_images(padding: str = "right") -> dict[str, Any]:
    """A batch of two rows, of one and five tiles and of different lengths."""
    torch.manual_seed(1)
    first, second = [5, -200, *range(20, 40)], [7, 8, -200, *range(50, 55)]
    blank = [0] * (len(first) - len(second))
    ids = torch.tensor([first, second + blank if padding == "right" else blank + second])
    labels = torch.where((ids > 30) & (ids != 0), ids, -100)
    images = [torch.randn(1, 3, 56, 56), torch.randn(5, 3, 56, 56)]
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": labels,
        "images": images,
        "image_sizes": [(56, 56), (112, 112)],
        "modalities": ["image", "image"],
    }


@torch.no_grad()
def moved(model: Any) -> None:
    """Other values for all that is trained."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_back_and_merges(kind: str, tmp_path: Path) -> None:
    model, tokenizer = adapted(
        kind, "--mm_tunable_parts", "mm_mlp_adapter,mm_language_model", "--learning_rate", "1e-3"
    )
    own = {name for part, name, p in parts_of(model) if p.requires_grad and part == LANGUAGE_MODEL}
    assert own == adapter_names(model)
    assert len(own) == 1 if kind in VIRTUAL_TOKENS else len(own) >= 8
    before = logits(model)
    moved(model)
    expected = logits(model)
    assert (expected - before).abs().max() > 0.1
    folder = tmp_path / "llava-adapter"
    save_lora(model, folder)
    tokenizer.save_pretrained(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja", ".md"}
    loaded = load(folder, str(TINY))
    same = torch.equal if kind in UNMERGED else torch.allclose
    assert same(logits(loaded), expected) or torch.allclose(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(loaded.get_model().mm_projector[0].weight, model.get_model().mm_projector[0].weight)
    if kind in ("rslora", "dora"):
        assert json.loads((folder / "adapter_config.json").read_text())[f"use_{kind}"] is True


def load(folder: Path, base: str | None) -> Any:
    return load_pretrained_model(str(folder), base, "llava_qwen", torch_dtype="float32")[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in UNMERGED])
def test_merging_is_pefts(kind: str, tmp_path: Path) -> None:
    model, tokenizer = adapted(kind, "--mm_tunable_parts", "mm_language_model")
    moved(model)
    folder = tmp_path / "llava-adapter"
    save_lora(model, folder)
    tokenizer.save_pretrained(folder)
    merge(str(folder), str(TINY), tmp_path / "llava-merged")
    assert not (tmp_path / "llava-merged" / "adapter_config.json").exists()
    wanted, found = model.merge_and_unload().state_dict(), load(tmp_path / "llava-merged", None).state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("kind", sorted(UNMERGED))
def test_what_is_no_change_of_weights_is_not_merged(kind: str, tmp_path: Path) -> None:
    model, _ = adapted(kind, "--mm_tunable_parts", "mm_language_model")
    save_lora(model, tmp_path / "adapter")
    with pytest.raises(InputError, match=f"is of kind {kind.upper()}.*, which cannot be merged into weights; allowed"):
        merge(str(tmp_path / "adapter"), str(TINY), tmp_path / "merged")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in VIRTUAL_TOKENS])
def test_it_starts_as_the_base(kind: str) -> None:
    base, _ = adapted("none", "--mm_tunable_parts", "mm_language_model")
    torch.testing.assert_close(logits(adapted(kind)[0]), logits(base), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FROM_WEIGHTS)
def test_it_starts_from_singular_vectors(kind: str) -> None:
    model, _ = adapted(kind, "--lora_alpha", "2")
    layer = model.base_model.model.model.layers[0].mlp.gate_proj
    weight = layer.base_layer.weight
    left, values, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    chosen = slice(4) if kind == "pissa" else slice(-4, None)
    wanted = left[:, chosen] @ torch.diag(values[chosen]) @ right[chosen]
    change = 0.5 * layer.lora_B.default.weight @ layer.lora_A.default.weight  # alpha / r
    torch.testing.assert_close(change, wanted, atol=1e-5, rtol=1e-4)
    norms = layer.lora_A.default.weight.norm(dim=1), layer.lora_B.default.weight.norm(dim=0)
    torch.testing.assert_close(*norms, atol=1e-4, rtol=1e-4)  # the values are shared evenly
    assert torch.equal(layer.lora_B.initial.weight, -layer.lora_B.default.weight)
    assert not layer.lora_A.initial.weight.requires_grad and layer.lora_A.default.weight.requires_grad


@pytest.mark.parametrize("kind", FROM_WEIGHTS)
def test_more_singular_vectors_than_there_are_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match=rf"--adapter_r 65: --adapter {kind} .* 128 inputs and 64 outputs, has 64"):
        adapted(kind, "--lora_r", "65")
    adapted(kind, "--lora_r", "64")


@pytest.mark.parametrize("kind", sorted(set(LORA_FAMILY) - set(FROM_WEIGHTS)))
def test_a_rank_that_no_layer_has_is_refused(kind: str) -> None:
    """The largest has 128 inputs and as many outputs at least; those of keys and values, with 64, do not count."""
    with pytest.raises(InputError, match=rf"--adapter_r 129: .* --adapter {kind} .* 128 inputs and .*, has 128:"):
        adapted(kind, "--lora_r", "129")
    adapted(kind, "--lora_r", "128")


@pytest.mark.parametrize("kind", VIRTUAL_TOKENS)
def test_virtual_tokens_leave_room_for_the_text(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"--adapter_tokens 4096: they take positions of the text, .* 4096 in all"):
        adapted(kind, "--adapter_tokens", "4096")
    adapted(kind, "--model_max_length", "4076")
    assert "are more than" not in caplog.text
    adapted(kind, "--model_max_length", "4077")
    assert "samples of more than 4076 tokens" in caplog.text


def test_other_readers_refuse_what_they_would_load_wrongly(tmp_path: Path) -> None:
    save_lora(adapted("milora")[0], tmp_path)
    with pytest.raises(ValueError, match="milora"):
        PeftModelForCausalLM.from_pretrained(adapted("none")[0], str(tmp_path))
    (tmp_path / "non_lora_trainables.safetensors").unlink()
    with pytest.raises(InputError, match=r"needs non_lora_trainables\.safetensors"):
        load(tmp_path, str(TINY))


def test_houlsby_adds_a_bottleneck_to_the_blocks_outputs() -> None:
    model, _ = adapted("houlsby")
    names = {
        name.rsplit(".houlsby", 1)[0].split("layers.0.")[-1] for name in adapter_names(model) if ".layers.0." in name
    }
    assert names == {"self_attn.o_proj", "mlp.down_proj"}
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    moved(model)
    x, own = torch.randn(2, 3, layer.base_layer.in_features), layer.houlsby_bottleneck.default
    h = layer.base_layer(x)
    down = torch.nn.functional.gelu(h @ own.down.weight.T + own.down.bias)
    torch.testing.assert_close(layer(x), h + down @ own.up.weight.T + own.up.bias)
    assert own.down.weight.shape == (4, 128)


def test_mora_has_as_many_weights_as_lora_and_a_higher_rank() -> None:
    square = Square(inputs=20, outputs=12, r=3)  # a width of sqrt(96), made even
    assert square.width == 10 and square.pieces == 2
    torch.nn.init.normal_(square.weight)
    change = square(torch.eye(20)).detach()
    assert torch.linalg.matrix_rank(change) == 12
    x = torch.randn(20)
    angles = 10000.0 ** -(torch.arange(5) / 5)  # of the second piece; the first is not rotated
    second = torch.complex(x[10:15], x[15:]) * torch.polar(torch.ones(5), angles)
    pieces = torch.cat([x[:10], second.real, second.imag]).view(2, 10)
    torch.testing.assert_close(square(x), (pieces @ square.weight.T).flatten()[:12])
    torch.testing.assert_close(x @ change, square(x))
    assert side(128, 128, 64) == 128 and side(4864, 896, 8) == 214 and side(10, 10, 64) == 10


@pytest.mark.parametrize("kind", ["lora", "mora", "pissa"])
def test_it_goes_where_it_is_sent(kind: str, tmp_path: Path) -> None:
    targets = "mm_vision_tower,mm_mlp_adapter"
    model, tokenizer = adapted(kind, "--adapter_targets", targets, "--mm_tunable_parts", "mm_language_model")
    parts = Counter(part for part, _, p in parts_of(model) if p.requires_grad)
    assert parts.keys() == {PROJECTOR, VISION_TOWER} and parts[PROJECTOR] == (2 if kind == "mora" else 4)
    moved(model)
    batch = with_images()
    expected = model.eval()(**batch).logits
    save_lora(model, tmp_path / "llava-adapter")
    tokenizer.save_pretrained(tmp_path / "llava-adapter")
    torch.testing.assert_close(
        load(tmp_path / "llava-adapter", str(TINY))(**batch).logits, expected, atol=1e-4, rtol=1e-4
    )
    plain = adapted("none")[0].eval()(**batch).logits
    assert (plain - expected).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["ia3", "ln", "houlsby"])
def test_towers_have_what_is_adapted_too(kind: str) -> None:
    model, _ = adapted(
        kind, "--adapter_targets", "mm_vision_tower,mm_language_model", "--mm_tunable_parts", "mm_language_model"
    )
    assert {part for part, _, p in parts_of(model) if p.requires_grad} == {LANGUAGE_MODEL, VISION_TOWER}


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("lora", f"--mm_tunable_parts {PROJECTOR}", f"adapter lora ({LANGUAGE_MODEL}), {PROJECTOR}"),
        ("lora", f"--mm_tunable_parts {LANGUAGE_MODEL}", f"adapter lora ({LANGUAGE_MODEL})"),
        ("prompt", f"--mm_tunable_parts {LANGUAGE_MODEL}", f"adapter prompt ({LANGUAGE_MODEL})"),
        ("ln", f"--mm_tunable_parts {VISION_TOWER}", f"adapter ln ({LANGUAGE_MODEL}), {VISION_TOWER}"),
        (
            "lora",
            f"--mm_tunable_parts {LANGUAGE_MODEL} --adapter_targets {VISION_TOWER},{LANGUAGE_MODEL} --lora_bias all",
            f"adapter lora ({LANGUAGE_MODEL}, {VISION_TOWER}), biases of {LANGUAGE_MODEL}",
        ),
        ("none", f"--mm_tunable_parts {VISION_TOWER},{LANGUAGE_MODEL}", f"{LANGUAGE_MODEL}, {VISION_TOWER}"),
        ("none", "--tune_mm_mlp_adapter True", PROJECTOR),
        ("none", "", f"{LANGUAGE_MODEL}, {PROJECTOR}"),
    ],
)
def test_what_is_trained_is_told_by_parts(kind: str, words: str, said: str) -> None:
    model, _ = adapted(kind, *words.split(), "--learning_rate", "1e-3")
    assert trained_parts(model, kind, adapter_names(model)) == said


def test_the_old_flag_is_one_of_them() -> None:
    _, _, args = parse_arguments([*WORDS, "--lora_enable", "True"])
    assert (args.adapter, args.lora_enable) == ("lora", True)
    _, _, args = parse_arguments([*WORDS, "--adapter", "ln"])
    assert args.lora_enable
    _, _, args = parse_arguments(WORDS)
    assert (args.adapter, args.lora_enable) == ("none", False)
    with pytest.raises(InputError, match="--lora_enable True excludes --adapter ia3"):
        parse_arguments([*WORDS, "--lora_enable", "True", "--adapter", "ia3"])
    with pytest.raises(InputError, match="--adapter lorra: allowed are none, lora, rslora"):
        parse_arguments([*WORDS, "--adapter", "lorra"])


def test_both_names_of_a_flag_are_one() -> None:
    run = parse_arguments(
        [*WORDS[:-2], "--adapter", "lora", "--adapter_r", "8", "--lora_r", "8", "--adapter_alpha", "4"]
    )[2]
    assert (run.lora_r, run.adapter_r, run.lora_alpha, run.adapter_alpha) == (8, 8, 4, 4)
    assert run.lora_dropout == run.adapter_dropout == 0.05
    assert parse_arguments([*WORDS, "--adapter", "milora"])[2].lora_dropout == 0
    assert not parse_arguments([*WORDS, "--adapter", "prefix"])[2].gradient_checkpointing


def test_rate_and_eps_follow_from_the_kind() -> None:
    for kind, defaults in DEFAULTS.items():
        zo = parse_arguments([*WORDS, "--adapter", kind, "--trainer_mode", "zo"])[2]
        assert (zo.learning_rate, zo.zo_eps) == (defaults.zo_rate, defaults.zo_eps)
        assert parse_arguments([*WORDS, "--adapter", kind])[2].learning_rate == defaults.rate
    given = ["--adapter", "lora", "--trainer_mode", "zo", "--learning_rate", "1", "--zo_eps", "0.5"]
    assert (parse_arguments([*WORDS, *given])[2].learning_rate, parse_arguments([*WORDS, *given])[2].zo_eps) == (1, 0.5)
    full = parse_arguments([*WORDS, "--trainer_mode", "zo"])[2]
    assert (full.learning_rate, full.zo_eps) == (5e-5, 1e-3)
    assert DEFAULTS.keys() == set(KINDS)


@pytest.mark.parametrize("name", ["adapter", "llava-adapter"])
def test_one_that_peft_saved_needs_its_base_alone(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = get_peft_model(load(TINY, None), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    moved(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / name)
    assert not (tmp_path / name / "config.json").exists()
    loaded = load_pretrained_model(str(tmp_path / name), str(TINY), name, torch_dtype="float32")[1]
    assert torch.allclose(logits(loaded), expected, atol=1e-4, rtol=1e-4) and loaded.get_vision_tower().is_loaded
    merge(str(tmp_path / name), str(TINY), tmp_path / "merged")
    assert torch.allclose(logits(load(tmp_path / "merged", None)), expected, atol=1e-4, rtol=1e-4)
    assert "was trained on" not in caplog.text
    (tmp_path / "other").symlink_to(TINY)
    load(tmp_path / name, str(tmp_path / "other"))
    assert f"was trained on {TINY}, by its adapter_config.json, and is put on {tmp_path / 'other'}" in caplog.text


def test_it_is_trained_alone_unless_other_parts_are_named():
    parts = {
        "--adapter ia3": "mm_language_model",
        "--adapter ia3 --freeze_mm_mlp_adapter True": None,
        "--lora_enable True": None,
    }
    for words, expected in parts.items():
        assert parse_arguments([*WORDS, *words.split()])[0].mm_tunable_parts == expected
    beside = [*WORDS, "--adapter", "prompt", "--mm_tunable_parts", "mm_mlp_adapter,mm_language_model"]
    with pytest.raises(InputError, match=r"mm_mlp_adapter trained beside it.*give --mm_projector_lr, or"):
        parse_arguments([*beside, "--trainer_mode", "zo"])
    rates = parse_arguments([*beside, "--trainer_mode", "zo", "--mm_projector_lr", "1e-6"])[2]
    assert (rates.learning_rate, rates.mm_projector_lr, rates.zo_eps) == (DEFAULTS["prompt"].zo_rate, 1e-6, 1e-3)


def test_llava_nexts_flag_has_loras_rate_where_lora_is_alone(caplog):
    alone = [*WORDS, "--lora_enable", "True", "--trainer_mode", "zo"]
    args = parse_arguments([*alone, "--mm_tunable_parts", "mm_language_model"])[2]
    assert (args.learning_rate, args.zo_eps) == (DEFAULTS["lora"].zo_rate, DEFAULTS["lora"].zo_eps)
    assert "hardly moves LoRA" not in caplog.text
    assert parse_arguments(alone)[2].learning_rate == 5e-5 and "hardly moves LoRA" in caplog.text
