"""Flags: names, types and defaults of LLaVA-NeXT, old spellings, and combinations that are refused."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import pytest
import transformers

from llava.errors import InputError
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags.parsing import parse_arguments

CLASSES = {"ModelArguments": ModelArguments, "DataArguments": DataArguments, "TrainingArguments_own": TrainingArguments}
BASE = ["--data_path", "x.json", "--version", "qwen_1_5", "--report_to", "none"]


@pytest.mark.parametrize("group", CLASSES)
def test_own_flags_have_the_same_types_and_defaults(golden: Path, group: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(CLASSES[group])}
    hints = typing.get_type_hints(CLASSES[group])
    types = {"str": str, "int": int, "float": float, "bool": bool}
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    for case in json.loads((golden / "cli_flags.json").read_text())[group]:
        name = case["flag"].removeprefix("--")
        assert fields[name].default == case["default"], case
        if name not in inherited:
            plain = types[case["type"].removeprefix("Optional[").removesuffix("]")]
            assert hints[name] == (plain | None if case["type"].startswith("Optional") else plain), case


def test_inherited_flags_are_accepted(golden: Path) -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    cases = json.loads((golden / "cli_flags.json").read_text())["TrainingArguments_inherited_from_transformers"]
    assert {case["flag"].removeprefix("--") for case in cases} - names == {
        "_n_gpu"
    }  # never a flag that anybody could pass


def test_every_flag_has_help() -> None:
    own = set(CLASSES["TrainingArguments_own"].__annotations__)
    for group in CLASSES.values():
        for field in dataclasses.fields(group):
            if group is not TrainingArguments or field.name in own:
                assert field.metadata.get("help"), field.name


def test_old_spellings_act(tmp_path: Path) -> None:
    old = "--evaluation_strategy no --warmup_ratio 0.03 --no_cuda --per_gpu_train_batch_size 3"
    *_, args = parse_arguments([*BASE, "--output_dir", str(tmp_path), *old.split(), "--dispatch_batches", "False"])
    assert args.eval_strategy == "no"
    assert args.warmup_steps == 0.03
    assert args.use_cpu
    assert args.per_device_train_batch_size == 3
    assert args.accelerator_config.dispatch_batches is False


def test_tf32_is_dropped_without_cuda(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    *_, args = parse_arguments([*BASE, "--output_dir", str(tmp_path), "--tf32", "True"])
    assert not args.tf32
    assert "--tf32" in caplog.text


def test_booleans_with_and_without_value(tmp_path: Path) -> None:
    base = [*BASE, "--output_dir", str(tmp_path)]
    assert parse_arguments([*base, "--group_by_modality_length"])[2].group_by_modality_length
    assert not parse_arguments([*base, "--group_by_modality_length=False"])[2].group_by_modality_length


REFUSED = {
    "--trainer_mode newton": ["newton", "regular, zo"],
    "--trainer_mode zo --gradient_checkpointing True": ["--gradient_checkpointing", "--trainer_mode zo"],
    "--trainer_mode zo --fp16 True": ["--fp16", "--bf16 True"],
    "--trainer_mode zo --optim adafactor": ["--optim adafactor", "no effect"],
    "--trainer_mode zo --torch_compile True": ["--torch_compile", "--trainer_mode zo"],
    "--trainer_mode zo --zo_eps 0": ["--zo_eps 0", "above 0"],
    "--trainer_mode zo --zo_eps inf": ["--zo_eps inf", "finite"],
    "--trainer_mode zo --zo_num_directions 0": ["--zo_num_directions 0"],
    "--trainer_mode zo --zo_num_directions 5000": ["--zo_num_directions 5000", "1 to 4096"],
    "--trainer_mode zo --zo_seed 18446744073709551616": ["--zo_seed 18446744073709551616", "0 to 18446744073709551615"],
    "--trainer_mode zo --zo_rms_decay nan": ["--zo_rms_decay nan", "below 1"],
    "--trainer_mode zo --zo_window 1000": ["--zo_window 1000", "1 to 256"],
    "--trainer_mode zo --zo_seed -1": ["--zo_seed -1"],
    "--trainer_mode zo --zo_noise cauchy": ["cauchy", "gaussian, rademacher"],
    "--trainer_mode zo --zo_length_bucket 0": ["--zo_length_bucket 0", "at least 1"],
    "--trainer_mode zo --zo_journal_sync_steps 0": ["--zo_journal_sync_steps 0", "at least 1"],
    "--trainer_mode zo --zo_graph_memory_gb 0": ["--zo_graph_memory_gb 0", "above 0"],
    "--trainer_mode zo --zo_cuda_graphs on": ["--zo_cuda_graphs", "auto, off"],
    "--zo_kernel fpga": ["fpga", "auto, reference, torch, numba, triton"],
    "--zo_weight_storage int4": ["int4", "native, fixed16, fp32"],
    "--mm_tunable_parts mm_languge_model": ["mm_languge_model", "mm_language_model, mm_mlp_adapter, mm_vision_tower"],
    "--mm_tunable_parts mm_vision_resampler": ["mm_vision_resampler", "not supported"],
    "--image_aspect_ratio wide": ["wide", "anyres_max_N"],
    "--image_aspect_ratio crop_split": ["crop_split", "anyres_max_N"],
    "--image_aspect_ratio anyres_max_9": ["--image_grid_pinpoints"],
    "--mm_projector_type mlp2x_relu": ["mlp2x_relu", "mlpNx_gelu"],
    "--version qwen_9": ["qwen_9", "qwen_1_5"],
    "--mm_resampler_type qformer": ["resampler"],
    "--s2 True": ["--s2"],
    "--lora_bias some": ["some", "none, all, lora_only"],
    "--bits 3": ["--bits 3", "4, 8, 16"],
    "--save_safetensors False": ["safetensors"],
    "--learning_rat 1": ["--learning_rat", "--learning_rate"],
    "--rope_scaling_factor 2": ["--rope_scaling_type"],
    "--trainer_mode zo --label_smoothing_factor 0.1": ["--label_smoothing_factor 0.1", "--trainer_mode zo"],
    "--trainer_mode zo --deepspeed z.json": ["--deepspeed", "--trainer_mode zo"],
    "--trainer_mode zo --auto_find_batch_size True": ["--auto_find_batch_size", "--trainer_mode zo"],
    "--trainer_mode zo --save_only_model True": ["--save_only_model", "--zo_journal"],
    "--trainer_mode zo --zo_from_journal x --zo_journal False": ["--zo_from_journal", "--zo_journal True"],
    "--deepspeed z.json": ["deepspeed"],
    "--max_steps 0": ["--max_steps 0", "nothing"],
    "--num_train_epochs 0": ["--num_train_epochs 0", "nothing"],
    "--num_train_epochs -1": ["--num_train_epochs -1", "nothing"],
    "--gradient_accumulation_steps 0": ["--gradient_accumulation_steps 0", "at least 1"],
    "--per_device_train_batch_size 0": ["--per_device_train_batch_size 0", "at least 1"],
    "--image_window 5 5": ["--image_window 5", "lower one first"],
    "--max_image_pixels 0": ["--max_image_pixels 0", "at least 1"],
    "--video_fps 0": ["--video_fps 0", "more than 0"],
    "--frames_upbound -1": ["--frames_upbound -1", "0 for no limit"],
    "--learning_rate nan": ["--learning_rate nan", "finite"],
    "--learning_rate -1": ["--learning_rate -1", "at least 0"],
    "--mm_projector_lr=-1e-3": ["--mm_projector_lr -0.001"],
    "--mm_projector_lr -1e-3": ["--mm_projector_lr", "expected one argument"],
    "--max_steps many": ["--max_steps", "invalid int value: 'many'"],
    "--weight_decay inf": ["--weight_decay inf"],
    "--optim nothing": ["nothing"],
    "--optim galore_adamw --optim_target_modules all-linear": ["--optim galore_adamw", "galore"],
    "--lr_scheduler_type cosine_with_min_lr": ["--lr_scheduler_type", "min_lr"],
    "--report_to wandb": ["--report_to wandb"],
    "--lora_r 0": ["--lora_r 0", "at least 1"],
    "--dataloader_num_workers -1": ["--dataloader_num_workers -1", "at least 0"],
    "--attn_implementation flash_attention_3": ["flash_attention_3", "sdpa"],
    "--quant_type nf8": ["nf8", "nf4, fp4"],
    "--use_ipex True": ["--use_ipex", "leave it out"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_with_a_reason(words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        parse_arguments([*BASE, "--output_dir", str(tmp_path), *words.split()])
    for part in REFUSED[words]:
        assert part in str(error.value)


def test_default_of_gradient_checkpointing_gives_way_to_zo(tmp_path: Path) -> None:
    *_, args = parse_arguments([*BASE, "--output_dir", str(tmp_path), "--trainer_mode", "zo"])
    assert not args.gradient_checkpointing
    assert not args.activation_checkpointing
