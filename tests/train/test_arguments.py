"""Flags: names, types and defaults of LLaVA-NeXT, old spellings, and combinations that are refused."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from llava.errors import InputError
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags.effects import RULES
from llava.train.flags.parsing import parse_arguments

CLASSES = {"ModelArguments": ModelArguments, "DataArguments": DataArguments, "TrainingArguments_own": TrainingArguments}
# Flags that transformers has from 5.18 on
LATER = {"activation_checkpointing", "activation_checkpointing_kwargs"} - {
    field.name for field in dataclasses.fields(transformers.TrainingArguments)
}
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


@pytest.mark.parametrize(("parallel", "directions", "rows"), [("data", 1, 4), ("directions", 2, 1), ("both", 2, 2)])
def test_processes_with_records_of_their_own(
    parallel: str, directions: int, rows: int, flags: Callable[..., list[str]]
) -> None:
    values = {"trainer_mode": "zo", "gradient_checkpointing": None}
    args = parse_arguments(flags(**values, zo_parallel=parallel, zo_num_directions=directions))[2]
    assert (args.data_processes_of(4), args.data_processes_of(1)) == (rows, 1)


def test_more_processes_than_losses_are_refused(flags: Callable[..., list[str]]) -> None:
    args = parse_arguments(flags(trainer_mode="zo", gradient_checkpointing=None, zo_parallel="directions"))[2]
    with pytest.raises(InputError, match=r"3 processes cannot share out the 2 losses .*Raise --zo_num_directions"):
        args.data_processes_of(3)


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
    "--trainer_mode zo --optim adamw_torch": ["--optim adamw_torch", "no effect"],
    "--trainer_mode zo --optim_args no": ["--optim_args no", "no effect"],
    "--neftune_noise_alpha 0": ["--neftune_noise_alpha 0.0", "images"],
    "--activation_checkpointing_kwargs no": ["--activation_checkpointing_kwargs no", "JSON object"],
    "--trainer_mode zo --max_grad_norm 1.0": ["--max_grad_norm 1.0", "no effect"],
    "--trainer_mode zo --activation_checkpointing True": ["--activation_checkpointing True", "no backward pass"],
    "--trainer_mode zo --lora_enable True --lora_dropout 0.1": ["--lora_dropout 0.1", "evaluation mode"],
    "--trainer_mode zo --ddp_static_graph True": ["--ddp_static_graph True", "no effect"],
    "--trainer_mode zo --zo_kernel triton": ["--zo_kernel triton", "cuda alone", "cpu"],
    "--trainer_mode zo --zo_rank 3": ["--zo_rank 3", "--zo_estimator spsa"],
    "--trainer_mode zo --zo_rule normalized --zo_momentum 0.5": ["--zo_momentum 0.5", "--zo_rule normalized"],
    "--trainer_mode zo --zo_anchor_batches 3 --max_steps 9": ["--zo_anchor_batches 3", "svrg"],
    "--trainer_mode zo --zo_journal False --zo_journal_sync_steps 3": [
        "--zo_journal_sync_steps 3",
        "--zo_journal True",
    ],
    "--trainer_mode zo --zo_on_divergence halve --zo_journal False": ["--zo_on_divergence halve", "--zo_journal True"],
    "--trainer_mode zo --zo_on_divergence halve --lr_scheduler_type reduce_lr_on_plateau": [
        "--lr_scheduler_type reduce_lr_on_plateau",
        "--zo_on_divergence halve",
    ],
    "--zo_on_divergence halve": ["--zo_on_divergence halve", "--trainer_mode zo"],
    "--zo_eps 1e-3": ["--zo_eps 0.001", "--trainer_mode zo"],
    "--zo_kernel triton": ["--zo_kernel triton", "--trainer_mode zo"],
    "--eval_strategy steps": ["--eval_strategy steps", "--eval_data_path FILE"],
    "--evaluation_strategy epoch": ["--evaluation_strategy epoch", "--eval_data_path FILE"],
    "--do_eval True": ["--do_eval True", "--eval_data_path FILE"],
    "--do_train False": ["--do_train False"],
    "--eval_steps 5": ["--eval_steps 5", "--eval_data_path FILE"],
    "--eval_on_start True": ["--eval_on_start True", "--eval_data_path FILE"],
    "--eval_delay 5": ["--eval_delay 5", "--eval_data_path FILE"],
    "--eval_metric exact": ["--eval_metric exact", "--eval_data_path FILE"],
    "--load_best_model_at_end True": ["--load_best_model_at_end True", "--eval_data_path FILE"],
    "--early_stopping_patience 3": ["--early_stopping_patience 3", "--eval_data_path FILE"],
    "--eval_metric bleu": ["--eval_metric bleu", "loss, exact, choice, relaxed, or MODULE:FUNCTION"],
    "--eval_metric json:nothing": ["--eval_metric json:nothing", "cannot be imported"],
    "--eval_data_path v --eval_strategy no": ["--eval_strategy no", "--eval_data_path"],
    "--eval_data_path v --evaluation_strategy sometimes": ["--eval_strategy sometimes", "steps or epoch"],
    "--eval_data_path v --eval_strategy epoch --eval_steps 5": ["--eval_steps 5", "--eval_strategy epoch"],
    "--eval_data_path v --eval_steps 0": ["--eval_steps 0", "above 0"],
    "--eval_data_path v --eval_steps 2.5": ["--eval_steps", "2.5"],
    "--eval_data_path v --eval_steps 9 --max_steps 8": ["--eval_steps 9", "--max_steps 8"],
    "--eval_data_path v --eval_delay 8 --max_steps 8": ["--eval_delay 8", "--max_steps 8"],
    "--eval_data_path v --eval_steps 4 --max_steps 8 --early_stopping_patience 2": [
        "--early_stopping_patience 2",
        "2 evaluations",
    ],
    "--eval_data_path v --metric_for_best_model loss": ["--metric_for_best_model loss", "--eval_metric"],
    "--eval_data_path v --greater_is_better True": ["--greater_is_better True", "--eval_metric"],
    "--eval_data_path v --do_predict True": ["--do_predict True", "--eval_metric"],
    "--eval_data_path v --save_strategy best": ["--save_strategy best", "--load_best_model_at_end"],
    "--eval_data_path v --lr_scheduler_type greedy": ["--lr_scheduler_type greedy", "metric"],
    "--eval_data_path v --load_best_model_at_end True --save_strategy no": ["--save_strategy no", "leave it out"],
    "--eval_data_path v --load_best_model_at_end True --eval_steps 4 --save_steps 8": [
        "--save_steps 8",
        "leave it out",
    ],
    "--eval_data_path v --load_best_model_at_end True --eval_on_start True": ["--eval_on_start True", "regular"],
    "--eval_data_path v --load_best_model_at_end True --trainer_mode zo --zo_journal False": ["--zo_journal True"],
    "--eval_data_path v --deepspeed scripts/zero2.json": ["--deepspeed", "--eval_data_path"],
    "--eval_data_path v --fsdp full_shard": ["--fsdp", "--eval_data_path"],
    "--push_to_hub True": ["--push_to_hub True", "hf upload"],
    "--hub_model_id a/b": ["--hub_model_id a/b"],
    "--remove_unused_columns True": ["--remove_unused_columns True", "columns"],
    "--use_liger_kernel True": ["--use_liger_kernel True", "Liger"],
    "--neftune_noise_alpha 5": ["--neftune_noise_alpha 5", "images"],
    "--label_smoothing_factor 0.1": ["--label_smoothing_factor 0.1", "images"],
    "--dispatch_batches True": ["--dispatch_batches True", "images"],
    "--quant_type fp4": ["--quant_type fp4", "--bits 4"],
    "--mm_feature_cache_gb 3": ["--mm_feature_cache_gb 3", "--mm_feature_cache FOLDER"],
    "--faster_token_stride 3": ["--faster_token_stride 3", "--add_faster_video True"],
    "--words_per_image 9": ["--words_per_image 9", "--group_by_length"],
    "--group_by_length True --group_by_varlen True": ["--group_by_length True", "--group_by_varlen"],
    "--stratify_answers auto --group_by_varlen True": ["--stratify_answers auto", "by length"],
    "--lr_scheduler_type constant --warmup_ratio 0.1": ["--warmup_ratio 0.1", "--lr_scheduler_type constant"],
    "--warmup_ratio 0.1 --warmup_steps 3": ["--warmup_ratio", "--warmup_steps", "one of them"],
    "--adafactor True --optim sgd": ["--adafactor True", "--optim sgd"],
    "--per_gpu_train_batch_size 2 --per_device_train_batch_size 3": ["--per_gpu_train_batch_size 2", "one of them"],
    "--optim sgd --adam_beta1 0.5": ["--adam_beta1 0.5", "--optim sgd"],
    "--optim_args a=b": ["--optim_args a=b", "no effect"],
    "--adam_beta1 1": ["--adam_beta1 1.0", "below 1"],
    "--fp16 True --bf16 True": ["--fp16 True", "--bf16 True", "At most one"],
    "--fsdp full_shard": ["--fsdp full_shard", "distributed"],
    "--torch_compile_backend warp": ["--torch_compile_backend warp"],
    "--torch_compile_mode fast": ["--torch_compile_mode fast", "max-autotune"],
    "--dataloader_prefetch_factor 2": ["--dataloader_prefetch_factor 2", "--dataloader_num_workers > 0"],
    "--dataloader_persistent_workers True": ["--dataloader_persistent_workers True", "num_workers > 0"],
    '--gradient_checkpointing_kwargs {"a":1}': ["--gradient_checkpointing_kwargs", "'a'"],
    "--gradient_checkpointing_kwargs a.json": ["--gradient_checkpointing_kwargs a.json", "JSON object"],
    '--lr_scheduler_type cosine --lr_scheduler_kwargs {"num_cycles":"x"}': ["--lr_scheduler_kwargs", "'x'"],
    "--lr_scheduler_kwargs {bad": ["--lr_scheduler_kwargs {bad"],
    '--accelerator_config {"a":true}': ["--accelerator_config", "'a'"],
    "--accelerator_config gone.json": ["--accelerator_config gone.json", "No such file"],
    "--save_steps 0": ["--save_steps 0.0", "above 0"],
    "--logging_steps -1": ["--logging_steps -1.0", "above 0"],
    "--save_total_limit 0": ["--save_total_limit 0", "at least 1"],
    "--seed -1": ["--seed -1", "at least 0"],
    "--seed 4294967296": ["--seed 4294967296", "at most 4294967295"],
    "--warmup_steps nan": ["--warmup_steps nan", "finite"],
    "--max_steps 99999999999999999999": ["--max_steps 99999999999999999999", "at most"],
    "--ddp_timeout 0": ["--ddp_timeout 0", "at least 1"],
    "--mm_patch_merge_type round": ["--mm_patch_merge_type", "round"],
    "--mm_newline_position end": ["--mm_newline_position", "end"],
    "--mm_vision_select_feature all": ["--mm_vision_select_feature all", "cls_patch"],
    "--image_grid_pinpoints 3": ["--image_grid_pinpoints"],
    "--model_class_name Nothing": ["--model_class_name Nothing", "NothingForCausalLM"],
    "--model_class_name Qwen2 --vision_tower t": ["--model_class_name Qwen2", "text alone"],
    "--rope_scaling_factor 2 --rope_scaling_type llama3": ["--rope_scaling_type llama3", "linear, dynamic, yarn"],
    "--mm_feature_cache=": ["--mm_feature_cache", "empty"],
    "--output_dir=": ["--output_dir", "empty"],
    "--seed 1 2": ["--seed", "'2'"],
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
    "--trainer_mode zo --zo_parallel rows": ["--zo_parallel", "data, directions, both"],
    "--trainer_mode zo --zo_check_ranks_steps -1": ["--zo_check_ranks_steps -1", "at least 0"],
    "--zo_kernel fpga": ["fpga", "auto, reference, torch, numba, triton"],
    "--zo_weight_storage int4": ["int4", "native, fixed16, fp32"],
    "--mm_tunable_parts mm_languge_model": ["mm_languge_model", "mm_language_model, mm_mlp_adapter, mm_vision_tower"],
    "--mm_tunable_parts mm_vision_resampler": ["mm_vision_resampler", "not supported"],
    "--image_aspect_ratio wide": ["wide", "anyres_max_N"],
    "--image_aspect_ratio crop_split": ["crop_split", "anyres_max_N"],
    "--mm_projector_type mlp2x_relu": ["mlp2x_relu", "mlpNx_gelu"],
    "--version qwen_9": ["qwen_9", "qwen_1_5"],
    "--mm_resampler_type qformer": ["resampler"],
    "--s2 True": ["--s2"],
    "--adapter lora --adapter_r 8 --lora_r 16": ["--lora_r 16", "--adapter_r 8", "give one of them"],
    "--lora_enable True --adapter_alpha 8 --lora_alpha 16": ["--lora_alpha 16", "--adapter_alpha 8"],
    "--adapter prefix --adapter_r 8": ["--adapter_r 8", "no effect with --adapter prefix"],
    "--adapter pissa --adapter_dropout 0.1": ["--adapter_dropout 0.1", "lora or rslora or dora"],
    "--adapter mora --adapter_alpha 8": ["--adapter_alpha 8", "no effect with --adapter mora"],
    "--adapter_r 8": ["--adapter_r 8", "--adapter none"],
    "--adapter lora --adapter_tokens 8": ["--adapter_tokens 8", "prefix or prompt"],
    "--adapter prompt --adapter_targets mm_language_model": ["--adapter_targets", "--adapter prompt"],
    "--adapter lora --adapter_targets head": ["--adapter_targets", "'head'", "mm_mlp_adapter, mm_vision_tower"],
    "--adapter ia3 --adapter_targets mm_mlp_adapter": ["--adapter_targets mm_mlp_adapter", "lora, rslora"],
    "--adapter lora --adapter_targets mm_mlp_adapter --tune_mm_mlp_adapter True": [
        "--adapter_targets",
        "trains mm_mlp_adapter itself",
    ],
    "--adapter lora --adapter_targets mm_vision_tower --mm_tunable_parts mm_vision_tower": ["trains mm_vision_tower"],
    "--adapter prefix --adapter_tokens 0": ["--adapter_tokens 0", "at least 1"],
    "--adapter prefix --gradient_checkpointing True": ["--gradient_checkpointing", "--adapter prefix"],
    "--adapter prompt --use_pos_skipping True": ["--use_pos_skipping", "--adapter prompt"],
    "--adapter prompt --trainer_mode zo --zo_objective accuracy": ["--zo_objective accuracy", "--adapter prompt"],
    "--adapter milora --bits 4": ["--adapter milora", "--bits 4"],
    "--adapter lora --trainer_mode zo --adapter_dropout 0.1": ["--adapter_dropout 0.1", "evaluation mode"],
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
    "--trainer_mode zo --zo_probe_steps -1": ["--zo_probe_steps -1", "at least 0"],
    "--trainer_mode zo --zo_probe_steps 5 --zo_objective accuracy": ["--zo_probe_steps 5", "--zo_objective accuracy"],
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
    "--optim paged_adamw_8bit": ["--optim paged_adamw_8bit", "allowed are adamw_torch"],
    "--optim galore_adamw": ["--optim galore_adamw", "--optim_target_modules", "all-linear"],
    "--optim galore_adamw_layerwise --optim_target_modules all-linear": ["--optim galore_adamw_layerwise"],
    "--optim galore_adamw --optim_target_modules q_proj --lora_enable True": ["--optim galore_adamw", "--adapter lora"],
    "--optim galore_adamw --optim_target_modules q_proj --deepspeed z.json": ["--optim galore_adamw", "--deepspeed"],
    "--optim galore_adamw --optim_target_modules q_proj --adam_beta1 0.5": ["--adam_beta1 0.5", "no effect"],
    "--optim lomo --fp16 True": ["--optim lomo", "--fp16 True", "--bf16 True"],
    "--optim lomo --gradient_accumulation_steps 2": ["--optim lomo", "--gradient_accumulation_steps 2"],
    "--optim adalomo --max_grad_norm 1.0": ["--optim adalomo", "--max_grad_norm 1.0", "leave it out"],
    "--optim lomo --max_grad_norm 1.0": ["--optim lomo", "--max_grad_norm 1.0", "clip_grad_value"],
    "--optim lomo --deepspeed z.json": ["--optim lomo", "--deepspeed z.json"],
    "--optim lomo --fsdp full_shard": ["--optim lomo", "--fsdp full_shard"],
    "--optim lomo --optim_args momentum=0.9": ["--optim_args momentum=0.9", "--optim lomo", "clip_grad_value"],
    "--optim adalomo --optim_args decay_rate=x": ["--optim_args decay_rate=x", "--optim adalomo", "'x'"],
    "--optim adalomo --optim_args decay_rate=1": ["--optim_args decay_rate=1", "below"],
    "--optim adalomo --adam_epsilon 1e-6": ["--adam_epsilon 1e-06", "no effect"],
    "--tunable_layers 5-2": ["--tunable_layers 5-2", "must not be above"],
    "--tunable_layers 1- --adapter lora": ["--tunable_layers 1-", "excludes --adapter"],
    "--freeze_vectors True --adapter lora": ["--freeze_vectors True", "excludes --adapter"],
    "--tunable_layers 1- --mm_tunable_parts mm_mlp_adapter": ["--tunable_layers 1-", "add mm_language_model"],
    "--tunable_layers 1- --tune_mm_mlp_adapter True": ["--tunable_layers 1-", "add mm_language_model"],
    "--tunable_layers 1- --freeze_backbone True": ["--tunable_layers 1-", "the language model is frozen"],
    "--cycle_blocks 2 --optim sgd": ["--cycle_blocks 2", "--optim sgd", "adamw_torch"],
    "--cycle_blocks 2 --adapter lora": ["--cycle_blocks 2", "--adapter lora"],
    "--cycle_blocks 2 --bits 4 --mm_tunable_parts mm_mlp_adapter": ["--cycle_blocks 2", "--bits 4"],
    "--cycle_blocks 2 --mm_tunable_parts mm_mlp_adapter": ["--cycle_blocks 2", "projector alone"],
    "--cycle_blocks 2 --deepspeed z.json": ["--cycle_blocks 2", "--deepspeed z.json"],
    "--cycle_blocks -1": ["--cycle_blocks -1", "at least 0"],
    "--trainer_mode zo --cycle_blocks 2": ["--cycle_blocks 2", "no effect with --trainer_mode zo"],
    "--bits 4": ["--bits 4", "--adapter lora"],
    "--lr_scheduler_type cosine_with_min_lr": ["--lr_scheduler_type", "min_lr"],
    "--report_to wandb": ["--report_to wandb", "pip install", ".[wandb]"],
    "--report_to tensorboard": ["--report_to tensorboard", "pip install", ".[tensorboard]"],
    "--report_to tensorbord": ["--report_to tensorbord", "allowed are", "tensorboard, trackio, wandb"],
    "--lora_r 0": ["--lora_r 0", "at least 1"],
    "--dataloader_num_workers -1": ["--dataloader_num_workers -1", "at least 0"],
    "--attn_implementation flash_attention_3": ["flash_attention_3", "sdpa"],
    "--quant_type nf8": ["nf8", "nf4, fp4"],
    "--use_ipex True": ["--use_ipex", "leave it out"],
}


@pytest.mark.parametrize("words", [words for words in REFUSED if not any(f"--{name} " in words for name in LATER)])
def test_refused_with_a_reason(words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        parse_arguments([*BASE, "--output_dir", str(tmp_path), *words.split()])
    for part in REFUSED[words]:
        assert part in str(error.value)


ASKS_FOR_NOTHING = [
    "--trainer_mode zo --max_grad_norm 0 --torch_compile False --gradient_checkpointing False --lora_dropout 0",
    "--zo_journal False --zo_tensor_scales none",
    "--warmup_steps 0 --warmup_ratio 0.03 --per_gpu_train_batch_size 2 --per_device_train_batch_size 2",
    "--evaluation_strategy no --load_best_model_at_end False --push_to_hub False --mm_feature_cache_gb 20.0 "
    "--mm_feature_cache cache",
]


@pytest.mark.parametrize("words", ASKS_FOR_NOTHING)
def test_what_asks_for_nothing_is_taken(words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parse_arguments([*BASE, "--output_dir", str(tmp_path), *words.split()])
    assert "no effect" not in caplog.text


WARNED = {
    "--per_device_eval_batch_size 4": "--per_device_eval_batch_size 4 has no effect",
    "--mm_perceiver_depth 4": "--mm_perceiver_depth 4 is for scripts of LLaVA-NeXT alone",
    "--mm_tunable_parts mm_language_model --mm_vision_tower_lr 1e-6": "--mm_vision_tower_lr 1e-06 has no effect",
    "--mm_tunable_parts mm_language_model --freeze_backbone True": "--freeze_backbone True has no effect beside",
    "--lora_r 8": "--lora_r 8 has no effect without --lora_enable True",
    "--save_strategy no --save_steps 9": "--save_steps 9.0 has no effect without --save_strategy steps",
    "--trainer_mode zo --zo_length_bucket 32": "--zo_length_bucket 32 has no effect without a CUDA device",
}


@pytest.mark.parametrize("words", WARNED)
def test_flags_that_scripts_pass_in_vain(words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parse_arguments([*BASE, "--output_dir", str(tmp_path), *words.split()])
    assert WARNED[words] in caplog.text


def test_validation_follows_from_its_data(tmp_path: Path) -> None:
    base = [*BASE, "--output_dir", str(tmp_path), "--eval_data_path", "v.json"]
    *_, args = parse_arguments([*base, "--per_device_eval_batch_size", "3"])
    assert (args.eval_strategy, args.eval_steps, args.eval_batch_size) == ("steps", 0.1, 3)
    assert not args.load_best_model_at_end and args.save_steps == 500
    *_, args = parse_arguments(
        [*base, "--load_best_model_at_end", "True", "--eval_steps", "7", "--eval_metric", "choice"]
    )
    assert (args.save_strategy, args.save_steps, args.save_total_limit) == ("steps", 7, 1)
    assert (args.metric_for_best_model, args.greater_is_better) == ("choice", True)
    *_, args = parse_arguments([*base, "--load_best_model_at_end", "True", "--evaluation_strategy", "epoch"])
    assert (args.eval_strategy, args.save_strategy, args.greater_is_better) == ("epoch", "epoch", False)
    *_, args = parse_arguments([*base, "--load_best_model_at_end", "True", "--trainer_mode", "zo"])
    assert args.load_best_model_at_end and args.save_strategy == "no"


def test_every_flag_of_a_rule_is_there() -> None:
    known = {field.name for group in CLASSES.values() for field in dataclasses.fields(group)}
    assert {name for rule in RULES for name in rule.flags} - LATER <= known
    assert all(rule.flags for rule in RULES)


def test_trying_flags_out_leaves_the_folder_alone(tmp_path: Path) -> None:
    parse_arguments([*BASE, "--output_dir", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_default_of_gradient_checkpointing_gives_way_to_zo(tmp_path: Path) -> None:
    *_, args = parse_arguments([*BASE, "--output_dir", str(tmp_path), "--trainer_mode", "zo"])
    assert not args.gradient_checkpointing
    assert not getattr(args, "activation_checkpointing", False)
