"""Every kind of adapter: what it trains, and that it loads back and merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.errors import InputError
from llava.model.builder import load_pretrained_model
from llava.model.merge import merge
from llava.model.own_settings import read_config
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments
from llava.train.parts.adapters import ADAPTERS
from llava.train.parts.saving import adapter_names, save_lora
from llava.train.parts.tunable import LANGUAGE_MODEL, parts_of
from llava.train.train import build

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
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


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_back_and_merges(kind: str, tmp_path: Path) -> None:
    model, tokenizer = adapted(kind, "--mm_tunable_parts", "mm_mlp_adapter,mm_language_model")
    trained = [(part, name, p) for part, name, p in parts_of(model) if p.requires_grad]
    own = {name for part, name, _ in trained if part == LANGUAGE_MODEL}
    assert own == adapter_names(model) and len(own) >= 8
    before = logits(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, _, parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = logits(model)
    assert (expected - before).abs().max() > 0.1
    folder = tmp_path / "llava-adapter"
    save_lora(model, folder)
    tokenizer.save_pretrained(folder)
    merge(str(folder), str(TINY), tmp_path / "llava-merged")
    for path, base in ((folder, str(TINY)), (tmp_path / "llava-merged", None)):
        _, loaded, _, _ = load_pretrained_model(str(path), base, "llava_qwen", torch_dtype="float32")
        torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(loaded.get_model().mm_projector[0].weight, model.get_model().mm_projector[0].weight)
    if kind in ("rslora", "dora"):
        assert json.loads((folder / "adapter_config.json").read_text())[f"use_{kind}"] is True


def test_the_old_flag_is_one_of_them() -> None:
    _, _, args = parse_arguments([*WORDS, "--lora_enable", "True"])
    assert (args.adapter, args.lora_enable) == ("lora", True)
    _, _, args = parse_arguments([*WORDS, "--adapter", "ln"])
    assert args.lora_enable
    _, _, args = parse_arguments(WORDS)
    assert (args.adapter, args.lora_enable) == ("none", False)
    with pytest.raises(InputError, match="--lora_enable True excludes --adapter ia3"):
        parse_arguments([*WORDS, "--lora_enable", "True", "--adapter", "ia3"])
    with pytest.raises(InputError, match="--adapter lorra: allowed are none, lora"):
        parse_arguments([*WORDS, "--adapter", "lorra"])
