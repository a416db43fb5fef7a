"""Runs on a base in 4 and 8 bits: what is trained, that a run goes on, replays, loads and merges."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import report_of, same, weights
from safetensors.torch import load_file, save_file

from llava.errors import InputError
from llava.mezo import MeZO, MeZOConfig
from llava.mezo.journal.files import Journal
from llava.mezo.journal.replay import main as replay
from llava.mezo.noise import direction_seed, direction_values
from llava.model.builder import load_pretrained_model
from llava.model.merge import apart, merge, probe
from llava.model.own_settings import read_config
from llava.model.quantised import is_quantised, quantised_layers, weight_of
from llava.model.quantised_scales import SCALES_FILE, scales_of
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments
from llava.train.parts.saving import adapter_names
from llava.train.parts.tunable import LANGUAGE_MODEL, parts_of
from llava.train.train import build, train

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("no_picture_of_the_loss")

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
DATA = Path(__file__).parents[2] / "playground" / "data" / "scan"
SCALES = {"zo_quantized_scales": True}
Words = Callable[..., list[str]]
both = pytest.mark.parametrize("bits", [4, 8])


@pytest.fixture
def words(tiny_run: Words) -> Words:
    """Command line of four steps, with changes by keyword."""
    usual = {"mm_tunable_parts": "mm_mlp_adapter,mm_language_model", "attn_implementation": "sdpa", "max_steps": 4}

    def make(out: str = "out", **flags: object) -> list[str]:
        rank = {"lora_r": 4} if flags.get("adapter") in ("lora", "dora") else {}
        return tiny_run(out, **usual | rank | flags)

    return make


def built(argv: list[str]) -> Any:
    run = parse_arguments(argv)
    take_from_checkpoint(run[0], run[1], read_config(TINY))
    return build(*run)[0]


def loaded(run: Path, bits: int, base: Path = TINY, **more: Any) -> Any:
    """The run's model on its base in so many bits, in the run's dtype."""
    settings = {"load_4bit": bits == 4, "load_8bit": bits == 8, "attn_implementation": "sdpa", "torch_dtype": "auto"}
    return load_pretrained_model(str(run), str(base), "llava_qwen", device_map="cpu", **settings, **more)[1]


@both
@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_everything_else_stays_in_16_bits(mode: str, bits: int, words: Words) -> None:
    model = built(words(trainer_mode=mode, bits=bits, adapter="lora"))
    adapter = adapter_names(model)
    dtypes = {(part, p.dtype) for part, name, p in parts_of(model) if name not in adapter and p.is_floating_point()}
    assert {dtype for _, dtype in dtypes} == {torch.bfloat16} and len(dtypes) == 3  # tower, projector, language model
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert {layer.weight.dtype for layer in quantised_layers(model).values()} == {
        torch.uint8 if bits == 4 else torch.int8
    }
    assert len(quantised_layers(model)) == 4 * 7


@both
@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "ln"])
def test_forwards_outside_autocast_depend_on_the_adapter(adapter: str, bits: int, words: Words) -> None:
    model = built(words(trainer_mode="zo", bits=bits, adapter=adapter)).eval()
    before, again = probe(model), probe(model)
    assert torch.equal(before, again)  # also after a layer has handed over its scales
    torch.manual_seed(0)
    with torch.no_grad():
        for part, _, parameter in parts_of(model):
            if part == LANGUAGE_MODEL and parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert apart(probe(model), before)[0] > 0.01


@both
def test_a_forward_leaves_the_base_as_it_is(bits: int, words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where bitsandbytes would lay codes in 4 bits out anew for the CPU, and round their scales."""
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = built(words(trainer_mode="zo", bits=bits, adapter="lora")).eval()
    before = {name: weight_of(layer).clone() for name, layer in quantised_layers(model).items()}
    probe(model)
    assert all(torch.equal(weight_of(layer), before[name]) for name, layer in quantised_layers(model).items())


def test_what_cannot_be_trained_is_refused_before_a_model_is_loaded(words: Words) -> None:
    zo = {"trainer_mode": "zo"}
    for flags, said in (
        ({"bits": 4}, "--bits 4: weights in 4 bits cannot be trained themselves. Give --adapter lora"),
        ({"bits": 8, **zo}, "--bits 8: weights in 8 bits"),
        ({**SCALES, **zo}, "--zo_quantized_scales True needs a base with scales: give --bits 4 or 8"),
        ({**SCALES, "bits": 4}, "--zo_quantized_scales True has no effect with --trainer_mode regular"),
        ({**SCALES, **zo, "bits": 4, "adapter": "lora"}, "--zo_quantized_scales True excludes --adapter"),
        ({**SCALES, **zo, "bits": 4, "double_quant": True}, "--double_quant True excludes --zo_quantized_scales True"),
        (
            {**SCALES, **zo, "bits": 4, "mm_tunable_parts": "mm_mlp_adapter"},
            "add mm_language_model to --mm_tunable_parts",
        ),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            parse_arguments(words(**flags))
    assert parse_arguments(words(bits=4, mm_tunable_parts="mm_mlp_adapter"))[2].bits == 4
    assert parse_arguments(words(bits=4, **zo, **SCALES))[2].double_quant is False


@both
def test_scales_give_the_layers_of_before(bits: int, words: Words) -> None:
    flags = words(bits=bits, adapter="lora", **({"double_quant": False} if bits == 4 else {}))
    plain = built(flags).eval()
    model = built(words(trainer_mode="zo", bits=bits, **SCALES)).eval()
    trained = {name for part, name, p in parts_of(model) if p.requires_grad and part == LANGUAGE_MODEL}
    assert trained == {f"{name}.scales" for name in quantised_layers(model)} and len(trained) == 28
    with plain.disable_adapter():
        assert torch.equal(probe(model), probe(plain))
    for layer in quantised_layers(model).values():
        codes = layer.weight.numel() * (2 if bits == 4 else 1)
        assert layer.scales.dtype == torch.float32
        assert layer.scales.numel() == (codes // 64 if bits == 4 else layer.out_features)


@both
def test_losses_are_taken_at_perturbed_scales(bits: int, words: Words) -> None:
    """Against scales that are moved by hand and read by bitsandbytes' own layers."""
    model = built(words(trainer_mode="zo", bits=bits, mm_tunable_parts="mm_language_model", **SCALES)).eval()
    layers = quantised_layers(model)
    scales = {name: layer.scales for name, layer in sorted(layers.items())}
    start = {name: value.detach().clone() for name, value in scales.items()}
    optimizer = MeZO(scales.values(), model, MeZOConfig(eps=1e-2, seed=7), lr=0.0)
    assert [f"{name}.scales" for name in scales] == list(optimizer.names)
    optimizer.accumulate(0, lambda: probe(model).square().mean())
    optimizer.step()
    assert optimizer.last is not None
    seed, found = optimizer.last.terms[0].seed, []
    for layer in layers.values():
        layer.__class__ = type(layer).__mro__[1]
    for scale in (1e-2, -1e-2):
        for number, (name, value) in enumerate(scales.items()):
            z = torch.from_numpy(direction_values(seed, number, 0, value.numel(), "gaussian"))
            value.data.copy_(start[name] + torch.tensor(scale) * z)
        with torch.no_grad():
            found.append(float(probe(model).square().mean()))
    assert found == list(optimizer.last.losses) and found[0] != found[1]


@both
def test_a_step_moves_the_scales_along_the_noise(bits: int, words: Words, tmp_path: Path) -> None:
    flags = words(trainer_mode="zo", bits=bits, max_steps=1, zo_seed=5, mm_tunable_parts="mm_language_model", **SCALES)
    train(argv=flags)
    (record,) = Journal.read(tmp_path / "out" / "mezo_journal").records
    grad = (record.losses[0] - record.losses[1]) / 2e-3
    assert grad != 0
    seed, names = direction_seed(5, 0, 0), Journal.read(tmp_path / "out" / "mezo_journal").header.names
    start = load_file(tmp_path / "out" / "mezo_journal" / "model" / SCALES_FILE)
    end = load_file(tmp_path / "out" / SCALES_FILE)
    for number, name in enumerate(names):
        z = torch.from_numpy(direction_values(seed, number, 0, start[name].numel(), "gaussian"))
        expected = start[name] - torch.tensor(record.rates[0] * grad) * z
        torch.testing.assert_close(end[name], expected, rtol=1e-5, atol=1e-7)
    base = loaded(tmp_path / "out", bits)
    assert {type(layer).__name__ for layer in quantised_layers(base).values()} <= {"Linear4bit", "Linear8bitLt"}
    for name, layer in quantised_layers(base).items():
        assert torch.equal(scales_of(layer), end[f"{name}.scales"])


@pytest.mark.slow
@both
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "scales"])
def test_a_zo_run_goes_on_and_replays_bit_for_bit(kind: str, bits: int, words: Words, tmp_path: Path) -> None:
    flags: dict[str, object] = {
        "trainer_mode": "zo",
        "bits": bits,
        **(SCALES if kind == "scales" else {"adapter": kind}),
    }
    train(argv=words(**flags))
    folder, cut = tmp_path / "out", tmp_path / "cut"
    journal = Journal.read(folder / "mezo_journal")
    assert len(journal.records) == 4 and all(len(set(r.losses)) == 2 for r in journal.records)
    shutil.copytree(folder / "mezo_journal", cut / "mezo_journal")
    records = cut / "mezo_journal" / "records.bin"
    records.write_bytes(records.read_bytes()[: 2 * journal.header.record_bytes])
    train(argv=words("cut", **flags))
    words_of = ["--model-path", str(TINY), "--journal", str(folder / "mezo_journal")]
    assert replay([*words_of, "--output-dir", str(tmp_path / "again")]) == 0
    assert same(weights(folder), weights(cut)) and same(weights(folder), weights(tmp_path / "again"))


@pytest.mark.slow
@both
@pytest.mark.parametrize("kind", ["lora", "scales"])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(kind: str, bits: int, words: Words, tmp_path: Path) -> None:
    zo = {"trainer_mode": "zo", "zo_journal": False, **SCALES}
    flags = {"bits": bits, "save_strategy": "steps", "save_steps": 2, **(zo if kind == "scales" else {"adapter": kind})}
    names = [SCALES_FILE] if kind == "scales" else ["adapter_model.safetensors", "non_lora_trainables.safetensors"]
    train(argv=words(**flags))
    shutil.copytree(tmp_path / "out" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    train(argv=words("cut", **flags))
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    early, late = (load_file(tmp_path / where / names[0]) for where in ("cut/checkpoint-2", "out"))
    assert any(not torch.equal(early[name], late[name]) for name in early)


def saved(words: Words, folder: Path, bits: int, kind: str) -> tuple[Any, Path]:
    """A model whose adapter or scales were moved by hand, and the folder that it is saved in."""
    from llava.train.parts.saving import save_lora, save_scales

    scales = kind == "scales"
    model = built(words(trainer_mode="zo", bits=bits, **(SCALES if scales else {"adapter": kind}))).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for _, _, parameter in parts_of(model):
            if parameter.requires_grad:
                parameter.add_((0.01 if scales else 0.1) * torch.randn_like(parameter))
    (save_scales if scales else save_lora)(model, folder)
    for file in TINY.glob("*token*"):
        shutil.copy(file, folder)
    return model, folder


@both
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "scales"])
def test_it_loads_on_the_same_base_and_merges(
    kind: str, bits: int, words: Words, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = saved(words, tmp_path / "llava-run", bits, kind)
    expected = probe(model)
    again = loaded(folder, bits)
    assert is_quantised(again) and torch.equal(probe(again), expected)
    assert torch.equal(again.get_model().mm_projector[0].weight, model.get_model().mm_projector[0].weight)
    caplog.clear()
    merge(str(folder), str(TINY), tmp_path / "llava-merged")
    said = next(
        record for record in caplog.records if record.name == "llava.model.merge" and record.levelname == "WARNING"
    )
    whole = load_pretrained_model(
        str(tmp_path / "llava-merged"), None, "llava_qwen", torch_dtype="auto", device_map="cpu"
    )[1]
    assert not is_quantised(whole) and whole.dtype == torch.bfloat16
    assert "quantization_config" not in read_config(tmp_path / "llava-merged")
    distance, others = apart(probe(whole), expected)
    assert distance < 0.05
    assert said.args is not None and said.args[3:] == (100 * distance, 100 * others)
    if kind == "scales":
        merged = whole.model.layers[1].mlp.up_proj.weight
        assert torch.equal(merged, weight_of(model.model.layers[1].mlp.up_proj).to(torch.bfloat16))


def test_another_base_than_in_training_is_said_or_refused(
    words: Words, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, folder = saved(words, tmp_path / "llava-lora", 4, "lora")
    assert "was trained on its base in 4 bits, and is put on the base in 16" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert not is_quantised(loaded(folder, 16))
    assert "was trained on its base in 4 bits, and is put on the base in 16" in caplog.text
    _, folder = saved(words, tmp_path / "llava-scales", 4, "scales")
    for bits in (8, 16):
        with pytest.raises(InputError, match=rf"in 4 bits, which is to be loaded in {bits}: give --bits 4"):
            loaded(folder, bits)
    other = shutil.copytree(TINY, tmp_path / "other-base")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3] *= 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the scales are of another base than .*other-base"):
        loaded(folder, 4, base=other)
    assert "scales_start_sha256" not in loaded(folder, 4).config.to_dict()  # not of what is saved next
    with pytest.raises(InputError, match=r"scales of quantised layers alone lie there.*model_base"):
        load_pretrained_model(str(folder), None, "llava_qwen")


@both
@pytest.mark.parametrize("mode", ["regular", "zo"])
def test_an_adapter_trains_where_no_parts_are_named(mode: str, bits: int, tiny_run: Words, tmp_path: Path) -> None:
    train(argv=tiny_run(trainer_mode=mode, bits=bits, lora_enable=True, max_steps=1))
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@both
def test_the_report_has_the_bits(bits: int, words: Words, tmp_path: Path) -> None:
    train(argv=words(trainer_mode="zo", bits=bits, adapter="lora", max_steps=1))
    assert report_of(tmp_path / "out")["bits"] == bits
