"""Nine whole runs of the conformance data: the files, weights and configs they leave, and how these load back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.utils import extract_model_from_parallel
from finished_runs import state_of
from safetensors import safe_open
from safetensors.torch import load_file

import llava.train.train as training
from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.mm_utils import get_model_name_from_path
from llava.model import merge
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.siglip_encoder import SigLipVisionTower

pytestmark = pytest.mark.usefixtures("no_picture_of_the_loss")

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "model" / "saved_runs.json").read_text())["runs"]}
EACH = [pytest.param(name, marks=() if name == "adapter-mm_tunable_parts" else pytest.mark.slow) for name in CASES]
ALL_PARTS = "mm_vision_tower,mm_mlp_adapter,mm_language_model"

# LLaVA-NeXT's file -> the files that stand for it here; those not named keep their name. Pickles became safetensors and
# JSON; transformers 5 keeps a whole tokenizer in two files.
FILES_HERE = {
    "adapter_model.bin": ["adapter_model.safetensors"],
    "added_tokens.json": ["tokenizer.json"],
    "merges.txt": ["tokenizer.json"],
    "mm_projector.bin": ["mm_projector.safetensors"],
    "non_lora_trainables.bin": ["non_lora_trainables.safetensors"],
    "optimizer.pt": ["optimizer.json", "optimizer.safetensors"],
    "rng_state.pth": ["rng_state.json", "rng_state.safetensors"],
    "scheduler.pt": ["scheduler.json", "scheduler.safetensors"],
    "special_tokens_map.json": ["tokenizer_config.json"],
    "tokenizer.model": ["tokenizer.json"],
    "training_args.bin": ["training_args.json"],
    "vocab.json": ["tokenizer.json"],
}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
# What makes a checkpoint-N complete; LLaVA-NeXT's adapter-only and LoRA ones lack a part of it.
MASTERS = {"masters.json", "masters.safetensors"}  # of weights in 16 bits
RESUMABLE = {f"{stem}.{kind}" for stem in ("optimizer", "rng_state", "scheduler") for kind in ("json", "safetensors")}
RESUMABLE |= {"config.json", "trainer_state.json", "training_args.json"}
ALSO_HERE = TOKENIZER | {"chat_template.jinja", "report.json", "training_args.json", "README.md"}

# Entries of config.json that are about the library's version, or that are better here (see the test).
# Since transformers 5 sliding_window is None unless use_sliding_window is true.
OTHER_ENTRIES = {"transformers_version", "_name_or_path", "model_type", "architectures", "mm_vision_tower"}
OTHER_ENTRIES |= {"sliding_window"}
DTYPES = {"BF16": "bfloat16", "F32": "float32"}


class Run(NamedTuple):
    folder: Path
    base: Path
    tower: Path
    logits: torch.Tensor
    """Of the trained model, in float32, for `logits_of`."""


def positions_alone(tower: SigLipVisionTower, images: torch.Tensor) -> torch.Tensor:
    """In place of the layers of the tower, which at their real width take seconds a step."""
    return tower.vision_tower.vision_model.embeddings.position_embedding.weight.expand(len(images), -1, -1)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    rows = len(model.get_input_embeddings().weight)
    # of 916 rows, 903 and 904 are those of <im_start> and <im_end> where these are added
    ids = torch.tensor([[40, 41, IMAGE_TOKEN_INDEX, 50, 51, rows - 13, rows - 12]])
    pixels = torch.rand(3, 384, 384, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return model(ids, images=[pixels], image_sizes=[(384, 384)]).logits[:, -8:]


@pytest.fixture(scope="module")
def run_of(
    run_flags: Callable[..., list[str]],
    bases: dict[str, Path],
    tower_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Run]:
    """The run of a name, with the flags that the conformance data was made with; each takes place once."""
    root = tmp_path_factory.mktemp("runs")
    records = json.loads((GOLDEN / "fullmodel" / "data" / "data.json").read_text())
    data = root / "small.json"
    data.write_text(json.dumps([record for record in records if record["id"] == "small"] * 2))
    done: dict[str, Run] = {}

    def run(name: str) -> Run:
        if name not in done:
            changes = dict(CASES[name]["run"])
            changes.pop("base")
            if "tune_mm_mlp_adapter" not in changes:
                changes.setdefault("mm_tunable_parts", ALL_PARTS)
            base_name = CASES[name]["config.json"]["_name_or_path"].removeprefix("BASE/")
            base = bases[base_name] if base_name in bases else run("full-from-plain-llm").folder
            words = run_flags(
                model_name_or_path=base,
                output_dir=root / name,
                data_path=data,
                max_steps=changes.pop("steps"),
                save_strategy="steps" if "save_steps" in changes else "no",
                mm_tunable_parts=changes.pop(
                    "mm_tunable_parts", None if "tune_mm_mlp_adapter" in changes else ALL_PARTS
                ),
                per_device_train_batch_size=1,
                learning_rate=1e-2,
                disable_tqdm=True,
                **changes,
            )
            done[name] = Run(root / name, base, tower_folder, _train(words))
        return done[name]

    return run


def _train(words: list[str]) -> torch.Tensor:
    built = []

    def build(*arguments: Any) -> Any:
        built.append(original(*arguments))
        return built[-1]

    original = training.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SigLipVisionTower, "encode", positions_alone)
        patch.setattr(training, "build", build)
        training.train(argv=words)
    model = extract_model_from_parallel(built[0][0], keep_fp32_wrapper=False)  # without accelerate's autocast
    return logits_of(model.float().eval())


def load(run: Run, folder: Path | None = None) -> Any:
    """The model of a run, in float32, through the public loader."""
    path = folder or run.folder
    whole = (path / "model.safetensors").exists()
    _, model, _, _ = load_pretrained_model(
        str(path),
        None if whole else str(run.base),
        get_model_name_from_path(str(path)),
        torch_dtype="float32",
        attn_implementation="sdpa",
    )
    return model


def tensors_of(file: Path) -> dict[str, tuple[list[int], str]]:
    with safe_open(file, framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
        return {name: (piece.get_shape(), DTYPES[piece.get_dtype()]) for name, piece in slices.items()}


@pytest.mark.parametrize("name", EACH)
def test_files(name: str, run_of: Callable[[str], Run]) -> None:
    folder = run_of(name).folder
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = set()
    for file in CASES[name]["files"]:
        parent, _, last = file.rpartition("/")
        if not (parent and last == "README.md"):  # PEFT's empty card; ours is of the finished model
            expected |= {f"{parent}/{here}".lstrip("/") for here in FILES_HERE.get(last, [last])}
    assert expected <= found
    checkpoints = {path.parent.name for path in map(Path, expected) if path.parent.name}
    assert {path.name for path in folder.glob("checkpoint-*")} == checkpoints
    complete = RESUMABLE | ({"non_lora_trainables.safetensors", "generation_config.json"} if "lora" in name else set())
    for checkpoint in checkpoints:
        assert {f"{checkpoint}/{file}" for file in complete} <= found
    more = {Path(file).name for file in found - expected}
    assert more <= ALSO_HERE | (complete | MASTERS if checkpoints else set())


@pytest.mark.parametrize("name", EACH)
def test_weights(name: str, run_of: Callable[[str], Run]) -> None:
    folder = run_of(name).folder
    for file, content in CASES[name]["tensors"].items():
        parent, _, last = file.rpartition("/")
        (here,) = FILES_HERE.get(last, [last])
        expected = {key: (shape, DTYPES.get(kind, kind)) for key, (shape, kind) in content["tensors"].items()}
        # What LLaVA-NeXT forgets: without it the projector's checkpoint cannot be used.
        if last == "mm_projector.bin":
            expected["model.image_newline"] = ([32], "bfloat16")
        if last == "non_lora_trainables.bin":
            expected["base_model.model.model.image_newline"] = ([32], "bfloat16")
        # Tables with rows to spare stay as they are, where LLaVA-NeXT cuts them down to the tokenizer.
        if "model.embed_tokens.weight" in expected:
            rows = CASES["llama-full" if "llama" in name else "full-from-plain-llm"]["config.json"]["vocab_size"]
            expected["model.embed_tokens.weight"] = ([rows, 32], "bfloat16")
        assert tensors_of(folder / parent / here) == expected


@pytest.mark.parametrize("name", EACH)
def test_config(name: str, run_of: Callable[[str], Run]) -> None:
    run = run_of(name)
    expected = CASES[name]["config.json"]
    family = ("llava_llama", "LlavaLlamaForCausalLM") if "llama" in name else ("llava_qwen", "LlavaQwenForCausalLM")
    folders = [run.folder, *run.folder.glob("checkpoint-*")]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == (family[0], [family[1]])
        assert config["mm_vision_tower"] == str(run.tower)
        entries = {key: value for key, value in expected.items() if key not in OTHER_ENTRIES}
        if name == "adapter-with-im-start-end":
            entries["vocab_size"] = 916  # not cut down, see test_weights
        entries["use_cache"] = True  # off while training alone
        # Entries that are None may be left out; readers accept missing ones.
        assert {key: config.get(key) for key in entries} == entries


@pytest.mark.parametrize("name", [case for case in EACH if "lora" in case.values[0]])
def test_adapter_config(name: str, run_of: Callable[[str], Run]) -> None:
    run = run_of(name)
    config = json.loads((run.folder / "adapter_config.json").read_text())
    expected = CASES[name]["adapter_config.json"] | {"base_model_name_or_path": str(run.base)}
    config["target_modules"] = sorted(config["target_modules"])
    assert {key: config[key] for key in expected if key in config} == {
        key: value for key, value in expected.items() if key in config
    }
    assert config.keys() >= {"r", "lora_alpha", "lora_dropout", "target_modules", "bias", "task_type", "peft_type"}


@pytest.mark.parametrize("name", [case for case in EACH if "generation_config.json" in CASES[case.values[0]]])
def test_generation_config(name: str, run_of: Callable[[str], Run]) -> None:
    config = json.loads((run_of(name).folder / "generation_config.json").read_text())
    expected = CASES[name]["generation_config.json"]
    for key in ("bos_token_id", "eos_token_id", "_from_model_config"):
        assert config[key] == expected[key]


@pytest.mark.parametrize("name", EACH)
def test_trainer_state(name: str, run_of: Callable[[str], Run]) -> None:
    state = state_of(run_of(name).folder)
    assert state["global_step"] == CASES[name]["run"]["steps"]
    assert set(CASES[name]["trainer_state_keys"]) <= state.keys()


@pytest.mark.parametrize("name", EACH)
def test_loads_back(name: str, run_of: Callable[[str], Run]) -> None:
    run = run_of(name)
    model = load(run)
    assert not model.training
    torch.testing.assert_close(logits_of(model), run.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter-mm_tunable_parts", "lora-adapter-and-lm"])
def test_merged_with_its_base_it_is_one_checkpoint(
    name: str, run_of: Callable[[str], Run], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run, merged = run_of(name), tmp_path / "merged"
    words = ["--adapter", str(run.folder), "--base", str(run.base), "--output", str(merged)]
    merge.main(words)
    assert not list(merged.glob("adapter*")) + list(merged.glob("*projector*"))
    here = load(run, merged)
    _, there, _, _ = load_pretrained_model(str(run.folder), str(run.base), "llava_qwen", torch_dtype="auto")
    expected = there.state_dict()
    tensors = load_file(merged / "model.safetensors")
    assert len(tensors) > 20 and all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    torch.testing.assert_close(logits_of(here), run.logits, atol=0.05, rtol=0.05)  # rounded to bfloat16
    assert (merged / "tokenizer.json").exists() and here.get_vision_tower().is_loaded
    assert "is not an empty folder" in refused(merge.main, words)


def test_what_is_no_adapter_is_not_merged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--adapter .*a: no such folder"):
        merge.merge(str(tmp_path / "a"), "base", tmp_path / "out")
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"holds no adapter: there is none of adapter_config.json, .*mm_projector"):
        merge.merge(str(tmp_path / "a"), "base", tmp_path / "out")
    (tmp_path / "a" / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    with pytest.raises(InputError, match="PREFIX_TUNING, which cannot be merged into weights"):
        merge.merge(str(tmp_path / "a"), "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter-mm_tunable_parts", "lora-adapter-and-lm"])
def test_checkpoint_of_a_step_loads_back(name: str, run_of: Callable[[str], Run]) -> None:
    run = run_of(name)
    torch.testing.assert_close(logits_of(load(run, run.folder / "checkpoint-2")), run.logits, atol=1e-4, rtol=1e-4)
    assert (logits_of(load(run, run.folder / "checkpoint-1")) - run.logits).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_lora_with_biases_loads_back(
    bias: str, run_flags: Callable[..., list[str]], bases: dict[str, Path], tower_folder: Path, tmp_path: Path
) -> None:
    base = bases["qwen2-base"]
    words = run_flags(
        model_name_or_path=base,
        output_dir=tmp_path,
        mm_tunable_parts="mm_mlp_adapter",
        model_max_length=16384,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        disable_tqdm=True,
        lora_enable=True,
        lora_r=4,
        lora_bias=bias,
    )
    run = Run(tmp_path, base, tower_folder, _train(words))
    file = tmp_path / "non_lora_trainables.safetensors"
    name = "base_model.model.model.layers.1.self_attn.q_proj.bias"
    assert tensors_of(file)[name] == ([32], "bfloat16")
    torch.testing.assert_close(logits_of(load(run)), run.logits, atol=1e-4, rtol=1e-4)
    assert not torch.equal(load_file(file)[name], load_file(tmp_path / "checkpoint-1" / file.name)[name])
