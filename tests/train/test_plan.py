"""The plan of a run: weights counted exactly, totals near measured ones, and the choice that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava.model import LlavaQwenForCausalLM
from llava.model.shapes import SHAPES, shape_config
from llava.train import plan
from llava.train.cards import CARDS
from llava.train.footprint import (
    HALF,
    SINGLE,
    Batch,
    Sizes,
    adafactor_states,
    graph_bytes,
    layer_activations,
    lora_activations,
)
from llava.train.methods import Row, largest_offloaded, offloaded, rows
from llava.train.parts.adapters import add_adapter
from llava.train.parts.tunable import LANGUAGE_MODEL, PARTS
from llava.train.plan import choice, main, sizes

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
LM, ALL = frozenset({LANGUAGE_MODEL}), frozenset(PARTS)
MEASURED_TOKENS = 2048
"""Of the row that docs/reproduction.md#memory measured, at the 0.5b shape, all parts trained, two tiles."""


@pytest.fixture(scope="module")
def half_b() -> Sizes:
    return sizes("0.5b")


def by_name(of: Sizes, batch: Batch, parts: frozenset[str] = LM) -> dict[str, Row]:
    return {row.name: row for row in rows(of, batch, parts)}


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_those_of_the_model(shape: str) -> None:
    with torch.device("meta"):
        model = LlavaQwenForCausalLM(shape_config(shape))
    of = sizes(shape)
    assert of.weights == sum(parameter.numel() for parameter in model.parameters())
    assert of.layer == sum(parameter.numel() for parameter in model.get_model().layers[0].parameters())
    assert of.trained(ALL) == of.weights


def test_the_published_sizes() -> None:
    """Qwen2-0.5B has 494,032,768 weights, Qwen2-7B 7,615,616,512; the language part has `image_newline` besides."""
    assert sizes("0.5b").parts[LANGUAGE_MODEL] == 494_032_768 + 896
    assert sizes("7b").parts[LANGUAGE_MODEL] == 7_615_616_512 + 3584


def test_a_folder_is_read_without_its_weights(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    model = LlavaQwenForCausalLM.from_pretrained(TINY)
    of = sizes(str(tmp_path))
    assert of.weights == sum(parameter.numel() for parameter in model.parameters())


def test_lora_has_as_many_weights_as_are_added() -> None:
    model = LlavaQwenForCausalLM.from_pretrained(TINY)
    settings = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_bias": "none", "bits": 16}
    settings["adapter_targets"] = "mm_language_model"
    added = add_adapter(model, SimpleNamespace(**settings, trainer_mode="zo"))
    number = sum(parameter.numel() for name, parameter in added.named_parameters() if "lora_" in name)
    assert sizes(str(TINY)).lora(8) == number


def test_adafactors_states_are_those_of_the_optimizer() -> None:
    from transformers.optimization import Adafactor

    model = LlavaQwenForCausalLM.from_pretrained(TINY)
    optimizer = Adafactor([{"params": list(model.model.layers.parameters())}], lr=1e-6, relative_step=False)
    for parameter in model.model.layers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(
        value.numel() * 4
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name.startswith("exp_avg_sq")
    )
    of = sizes(str(TINY))
    shapes = tuple(tuple(parameter.shape) for parameter in model.model.layers.parameters())
    only = Sizes(**{**vars(of), "matrices": {LANGUAGE_MODEL: shapes}})
    assert adafactor_states(only.shapes(LM)) == held


@pytest.mark.parametrize(
    ("name", "measured", "within"),
    [("zero-shot", 2.00, 0.07), ("MeZO, full", 2.08, 0.08), ("full, AdamW, checkpointing", 16.78, 0.05)],
)
def test_totals_are_near_what_was_measured(name: str, measured: float, within: float, half_b: Sizes) -> None:
    counted = by_name(half_b, Batch(1, MEASURED_TOKENS, 2, 12), ALL)[name].total / 1e9
    assert counted == pytest.approx(measured, rel=within)


@pytest.mark.parametrize(("lora", "measured", "within"), [(False, 14.87, 0.02), (True, 12.40, 0.17)])
def test_activations_are_near_what_was_measured(lora: bool, measured: float, within: float, half_b: Sizes) -> None:
    """Backpropagation as it was measured: no checkpointing, logits of all positions, states in bfloat16."""
    batch = Batch(1, MEASURED_TOKENS, 2, 0)
    logits = 2 * MEASURED_TOKENS * half_b.vocabulary * (HALF + SINGLE)
    activations = graph_bytes(half_b, batch, checkpointing=False, lora=lora, tower=not lora) + logits
    trained = 2 * HALF * 4 * half_b.lora(64) if lora else 3 * HALF * half_b.weights
    counted = HALF * half_b.weights + trained + activations
    assert counted / 1e9 == pytest.approx(measured, rel=within)


def test_a_layers_activations_are_what_autograd_keeps() -> None:
    """Bytes that a layer of the tiny model saves for its backward pass, each storage once, but for its weights."""
    model = LlavaQwenForCausalLM.from_pretrained(TINY).to(torch.bfloat16)
    decoder, length = model.get_model(), 64
    layer = decoder.layers[0]
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    states = torch.randn(1, length, model.config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    places = torch.arange(length)[None]
    turned = decoder.rotary_emb(states, places)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(states, position_embeddings=turned, attention_mask=None, position_ids=places)
    counted = layer_activations(sizes(str(TINY)), Batch(1, length, 0, 1))
    assert counted == pytest.approx(sum(kept.values()), rel=0.35)


def test_checkpointed_rows_are_near_what_was_counted_of_a_run(half_b: Sizes) -> None:
    """By `scripts/study/memory.py --count`, docs/reproduction.md."""
    found = {row.name.removesuffix(", checkpointing"): row for row in rows(half_b, Batch(1, 2048, 2, 12), LM, rank=8)}
    counted = {"full, a layer at a time": 2.18, "LoRA + AdamW": 2.03, "QLoRA + AdamW": 1.51}
    for name, total in counted.items():
        assert found[name].total / 1e9 == pytest.approx(total, rel=0.03), name
    assert found["full, a layer at a time"].bytes["optimizer"] == 8 * half_b.layer


def test_tiles_have_all_of_an_mlp(half_b: Sizes) -> None:
    """At a position beyond them LoRA keeps copies and masks (2 + 1 bytes) of the inputs of q, k, v and o alone."""
    shorter, longer = (lora_activations(half_b, Batch(1, tokens, 0, 12), at_once=512) for tokens in (1000, 1001))
    assert longer - shorter == (2 + 1) * (3 * half_b.width + half_b.queries)


def test_adapters_with_other_optimizers(half_b: Sizes) -> None:
    """Adafactor keeps a row and a column of each of LoRA's matrices, LOMO one gradient."""
    found = by_name(half_b, Batch())
    matrices = half_b.lora_matrices(64)
    assert found["LoRA + Adafactor"].bytes["optimizer"] == 4 * sum(map(sum, matrices))
    assert found["QLoRA + LOMO"].bytes["gradients"] == 4 * max(rows * columns for rows, columns in matrices)
    for base in ("LoRA", "QLoRA"):
        adamw, adafactor, lomo = (found[f"{base} + {name}"].total for name in ("AdamW", "Adafactor", "LOMO"))
        assert lomo < adafactor < adamw


def test_what_memory_follows(half_b: Sizes) -> None:
    small, large = by_name(half_b, Batch(1, 1500, 2)), by_name(half_b, Batch(8, 1500, 2))
    for name, row in small.items():
        assert row.total <= large[name].total, name
    assert small["full, AdamW, checkpointing"].total <= small["full, AdamW"].total
    assert small["full, LOMO, checkpointing"].total < small["full, Adafactor, checkpointing"].total
    states = adafactor_states(half_b.shapes(LM))
    assert small["full, AdaLomo"].total == small["full, LOMO"].total + states > small["full, LOMO"].total
    assert small["MeZO, full"].total < small["full, LOMO, checkpointing"].total
    assert small["MeZO, full"].bytes["copies"] == 2 * 2 * half_b.layer
    assert small["full, AdamW"].bytes["optimizer"] == 8 * half_b.parts[LANGUAGE_MODEL]
    assert [small[name].forwards for name in ("MeZO, full", "full, AdamW", "LoRA + AdamW, checkpointing")] == [2, 3, 4]


def test_backpropagation_is_taken_wherever_it_fits() -> None:
    found = rows(sizes("7b"), Batch(1, 1500, 2), LM)
    taken = {memory: choice(found, memory) for memory in (200, 80, 24, 16, 10, 9, 4, 2)}
    names = {memory: row.name if row else None for memory, row in taken.items()}
    assert names == {
        200: "full, AdamW",
        80: "full, AdaLomo",
        24: "full, AdaLomo, checkpointing",
        16: "QLoRA + AdamW, checkpointing",
        10: "QLoRA + Adafactor, checkpointing",
        9: "MeZO, 4-bit with LoRA",
        4: "MeZO, offloaded",
        2: None,
    }
    assert choice(found, 4, host_memory=16) is None


@pytest.mark.parametrize(("shape", "counted"), [("7b", 1.474), ("13b", 1.82), ("72b", 4.97)])
def test_what_is_offloaded_is_near_what_the_engine_takes(shape: str, counted: float) -> None:
    """`scripts/benchmark/offload.py` counted the other figures, by the engine itself."""
    of = sizes(shape)
    row = offloaded(of, Batch(), LM)
    assert counted < row.total / 1e9 < 1.13 * counted
    assert row.host == HALF * of.weights
    assert row.fits(24, 512) and not row.fits(24, row.host / 1e9) and not row.fits(2, 512)
    on_3090, on_h200 = (row.seconds(of, Batch(), CARDS[name]) for name in ("rtx3090", "h200"))
    assert on_h200 == CARDS["h200"].fetching(row.host)  # where the bus is what a step waits for
    assert on_h200 < on_3090


def test_the_largest_model_that_can_be_offloaded() -> None:
    by_host, by_card = largest_offloaded(24, 64, Batch()), largest_offloaded(4, 4096, Batch())
    assert HALF * by_host / 1e9 == pytest.approx(60, rel=0.05) and HALF * by_host / 1e9 <= 60
    assert 20e9 < by_card < 60e9
    assert largest_offloaded(24, 384, Batch()) > 175e9
    assert largest_offloaded(1, 64, Batch()) == 0


@pytest.mark.parametrize(("shape", "measured"), [("7b", 0.1121), ("0.5b", 0.0199)])
def test_times_are_near_what_was_measured(shape: str, measured: float) -> None:
    """Of a step of MeZO on an H200 (docs/performance.md); at 0.5b products are too small for the sheet's rate."""
    of, batch = sizes(shape), Batch()
    found = {row.name: row.seconds(of, batch, CARDS["h200"]) for row in rows(of, batch, LM)}
    assert found["MeZO, full"] == pytest.approx(measured, rel=0.1 if shape == "7b" else 0.6)
    assert found["full, AdamW"] < found["full, AdamW, checkpointing"]
    assert found["MeZO, LoRA"] < found["MeZO, full"] < found["LoRA + AdamW, checkpointing"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", "0.5b", "--gpu-memory", "24", "--batch", "4"])
    out = capsys.readouterr().out
    assert "We would take: full, AdamW" in out and out.count("\n| ") == len(rows(sizes("0.5b"), Batch(), LM))
    assert "s a step, counted" not in out
    main(["--model", "0.5b", "--gpu-memory", "24", "--gpu", "rtx3090"])
    assert "| s a step, counted |" in capsys.readouterr().out
    main(["--model", "7b", "--gpu-memory", "9"])
    assert "We would take: MeZO, 4-bit with LoRA (no backpropagation fits)" in capsys.readouterr().out
    main(["--model", "7b", "--gpu-memory", "24", "--host-memory", "12"])
    out = capsys.readouterr().out
    assert "| 1.63 | no | 2 | and 16.06 GB of the host's 12 |" in out
    main(["--model", "7b", "--gpu-memory", "5", "--host-memory", "12"])
    assert "or a host with 21 GB of memory (--host-memory), for MeZO, offloaded" in capsys.readouterr().out
    main(["--model", "7b", "--gpu-memory", "1.5"])
    assert "--host-memory" not in capsys.readouterr().out
    main(["--model", "7b", "--gpu-memory", "24", "--host-memory", "12"])
    out = capsys.readouterr().out
    assert "Offloaded, 24 GB of the card and 12 GB of the host train a decoder of up to 4 billion weights" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], None),
        (["--tokens", "741"], "--tiles 2 are up to 1,458 tokens by themselves, more than --tokens 741 leaves room for"),
        (["--tiles", "9"], "else give --tokens 6573 or more"),
        (["--tiles", "9", "--tokens", "6573"], None),
    ],
)
def test_more_tiles_than_tokens_are_said(
    words: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--model", "0.5b", "--gpu-memory", "24", *words])
    out = capsys.readouterr().out
    assert "by themselves" not in out if said is None else said in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "1b", "--gpu-memory", "24"],
            "--model 1b: no such folder; give one, a hub id, or tiny, mid, 0.5b, 7b, 13b, 72b",
        ),
        (["--model", "0.5b", "--gpu-memory", "0"], "--gpu-memory 0.0 must be a number above 0"),
        (["--model", "0.5b", "--gpu-memory", "inf"], "--gpu-memory inf must be a number above 0"),
        (["--model", "0.5b", "--gpu-memory", "8", "--tokens", "-1"], "--tokens -1 must be a number above 0"),
        (
            ["--model", "0.5b", "--gpu-memory", "8", "--tokens", "740", "--tiles", "9"],
            "--tokens 740 is too few for --tiles 9: a tile is 729 tokens, and --supervised 12 come on top; give "
            "--tokens 741 or more",
        ),
        (["--model", "0.5b", "--gpu-memory", "8", "--mm_tunable_parts", "all"], "unknown part 'all'; allowed: mm_lang"),
    ],
)
def test_wrong_flags_are_named(words: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(main, words)


def test_no_model_is_built_with_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = plan.sizes_of
    monkeypatch.setattr(plan, "sizes_of", lambda model: made.append(model) or real(model))
    sizes("7b")
    assert all(parameter.is_meta for parameter in made[0].parameters())
