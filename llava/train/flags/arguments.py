"""The flags of a training run: one dataclass for the model, one for the data, one for the run.

Names, types and defaults are those of LLaVA-NeXT, so that its scripts work unchanged; ours are marked
by their help text ("MeZO:" or "this tree:"). `llava.train.flags.parsing` reads them from a command line and
refuses combinations that cannot work; spellings of older transformers are in `renamed_flags`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import transformers

from llava.eval.metrics import METRICS
from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.config import KERNELS, NOISES, STORAGES
from llava.mezo.ranks import PARALLEL
from llava.model.adapter_kinds import ADAPTERS
from llava.train.flags.renamed_flags import RenamedFlags
from llava.train.parts.optimizers import OPTIMIZERS
from llava.train.zo.device_settings import GRAPHS
from llava.train.zo.settings import ON_DIVERGENCE, Settings

TRAINER_MODES = ("regular", "zo")
STRATIFY = ("auto", "off")


def flag(default: Any, help: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """Which model is trained, how its parts are put together, and which of them are tuned.

    `given` names the flags, of all three classes, that stood on the command line.
    """

    given: ClassVar[Collection[str]] = ()

    model_name_or_path: str | None = flag(
        "facebook/opt-125m", "base language model or LLaVA checkpoint: hub id or folder"
    )
    model_class_name: str | None = flag(None, "load transformers.<name>ForCausalLM as a plain text model instead")
    mm_tunable_parts: str | None = flag(
        None, "comma list of mm_language_model, mm_mlp_adapter, mm_vision_tower; replaces the legacy freeze flags"
    )
    tunable_layers: str | None = flag(
        None, "of the language model train these decoder layers alone, counted from 0: 12-23, 12- (to the last) or 20"
    )
    freeze_vectors: bool = flag(False, "train matrices alone: norms, biases and other vectors stay as they are")
    version: str | None = flag(
        "v0", "conversation template, e.g. qwen_1_5, plain, v1, llava_llama_3; not given: the checkpoint's own"
    )
    freeze_backbone: bool = flag(False, "legacy: freeze the language model (overridden by mm_tunable_parts)")
    tune_mm_mlp_adapter: bool = flag(False, "legacy: freeze all but the projector")
    tune_mm_vision_resampler: bool = flag(False, "legacy: not supported here (resamplers are left out)")
    vision_tower: str | None = flag(None, "vision tower: hub id or folder; default: the one the checkpoint names")
    vision_tower_pretrained: str | None = flag(None, "weights tag of OpenCLIP towers; only kept in the config")
    unfreeze_mm_vision_tower: bool = flag(False, "legacy: train the vision tower too")
    unfreeze_language_model: bool = flag(False, "accepted, unused")
    mm_vision_select_layer: int | None = flag(
        -1, "hidden state taken from a CLIP tower (SigLIP always gives its last kept layer)"
    )
    pretrain_mm_mlp_adapter: str | None = flag(None, "file with projector weights to start from")
    mm_projector_type: str | None = flag("linear", "linear, mlpNx_gelu (N >= 1) or identity")
    mm_use_im_start_end: bool = flag(False, "wrap each <image> in <im_start> and <im_end>")
    mm_use_im_patch_token: bool = flag(True, "add <im_patch> to the tokenizer")
    mm_patch_merge_type: str | None = flag(
        "flat", "how tile features are joined: flat, spatial, spatial_unpad and variants"
    )
    mm_vision_select_feature: str | None = flag("patch", "patch, cls_patch and the slice variants of a CLIP tower")
    mm_resampler_type: str | None = flag(None, "not supported here (resamplers are left out)")
    mm_mask_drop_mode: str = flag("fixed", "resampler setting, unused")
    mm_mask_drop_skip_percentage: float = flag(0.0, "resampler setting, unused")
    mm_mask_drop_ratio: float = flag(0.25, "resampler setting, unused")
    mm_mask_drop_ratio_upper: float | None = flag(None, "resampler setting, unused")
    mm_mask_drop_ratio_lower: float | None = flag(None, "resampler setting, unused")
    mm_spatial_pool_stride: int | None = flag(None, "pooling of video features, patches per side; default 2")
    mm_spatial_pool_mode: str = flag("bilinear", "pooling of video features: average, max or bilinear")
    mm_spatial_pool_out_channels: int | None = flag(None, "resampler setting, unused")
    mm_perceiver_depth: int | None = flag(3, "resampler setting, unused")
    mm_perceiver_latents: int | None = flag(32, "resampler setting, unused")
    mm_perceiver_ff_mult: float | None = flag(4, "resampler setting, unused")
    mm_perceiver_pretrained: str | None = flag(None, "resampler setting, unused")
    mm_qformer_depth: int | None = flag(3, "resampler setting, unused")
    mm_qformer_latents: int | None = flag(32, "resampler setting, unused")
    mm_qformer_pretrained: str | None = flag(None, "resampler setting, unused")
    rope_scaling_factor: float | None = flag(None, "with rope_scaling_type: stretch of the rotary positions")
    rope_scaling_type: str | None = flag(None, "with rope_scaling_factor: linear, dynamic, ...")
    s2: bool | None = flag(False, "not supported here (S2 towers are left out)")
    s2_scales: str | None = flag("336,672,1008", "S2 setting, unused")
    use_pos_skipping: bool | None = flag(False, "random jumps in the position ids while training")
    pos_skipping_range: int | None = flag(4096, "largest jump of use_pos_skipping, in positions")
    mm_newline_position: str | None = flag("grid", "videos: grid, frame, one_token or no_token")
    delay_load: bool | None = flag(True, "accepted; training always loads the tower")
    add_faster_video: bool | None = flag(False, "slow and fast video tokens")
    faster_token_stride: int | None = flag(10, "every n-th frame keeps all its tokens with add_faster_video")


@dataclass
class DataArguments:
    """Which samples are read and how they become token ids and pixels."""

    data_path: str = flag(None, "x.json, x.jsonl, x.parquet, prefix{a,b}.json, hf:NAME[:SPLIT] or a .yaml mixture")
    eval_data_path: str | None = flag(
        None,
        "this tree: records as for data_path that the run is validated on, every --eval_steps steps (default: 0.1, ten "
        "times a run) or at the end of each epoch (--eval_strategy epoch); images from image_folder",
    )
    lazy_preprocess: bool = flag(False, "accepted; preprocessing is always lazy")
    is_multimodal: bool = flag(False, "accepted; set by the presence of a vision tower")
    early_mix_text: bool = flag(False, "count text samples as multimodal when grouping by modality")
    image_folder: str | None = flag(None, "folder in front of the image paths of the records")
    image_aspect_ratio: str = flag("square", "square, pad, anyres or anyres_max_N")
    image_grid_pinpoints: str | None = flag(None, '"(1x1),...,(6x6)" in tiles or a list of [width, height] in pixels')
    image_crop_resolution: int | None = flag(None, "crop_split setting; only kept in the config")
    image_split_resolution: int | None = flag(None, "crop_split setting; only kept in the config")
    image_window: list[float] | None = flag(  # noqa: RUF009
        None, "this tree: LOW HIGH, the grey values of 16-bit, 32-bit and floating point pictures that become 0 and 255"
    )
    max_image_pixels: int | None = flag(None, "this tree: larger pictures are refused; default: 178956970, as Pillow")
    video_folder: str | None = flag(None, "folder in front of the video paths of the records")
    video_fps: int | None = flag(1, "frames taken per second of video")
    frames_upbound: int | None = flag(0, "at most this many frames of a video; 0: no limit")
    add_time_instruction: bool | None = flag(
        False, "put the sentence with the frame times in front of a video question"
    )
    force_sample: bool | None = flag(False, "always take exactly frames_upbound frames")
    train_on_answers_only: bool = flag(
        False, "this tree: supervise the answers and their end marks alone, not the markers of the prompt"
    )
    use_template_system_prompt: bool = flag(
        False, "this tree: train chat templates (qwen_2_5) with their own system text, not LLaVA-NeXT's one for all"
    )
    words_per_image: int | None = flag(
        None, "this tree: count this many words for each image when grouping by length; default: 128 a record"
    )
    skip_bad_samples: bool = flag(
        False, "this tree: skip samples that fail to load, count and list them in report.json"
    )


@dataclass
class TrainingArguments(RenamedFlags, transformers.TrainingArguments):
    """How the run goes: transformers' own arguments, LLaVA-NeXT's, and those of zeroth-order training."""

    cache_dir: str | None = flag(None, "hub cache")
    optim: str = flag("adamw_torch", f"optimizer of trainer_mode regular: {', '.join(OPTIMIZERS)}")
    remove_unused_columns: bool = flag(False, "drop columns that forward does not take")
    gradient_checkpointing: bool = flag(
        True, "recompute activations in the backward pass; no effect in trainer_mode zo"
    )
    auto_find_batch_size: bool = flag(False, "halve the batch until it fits")
    freeze_mm_mlp_adapter: bool = flag(False, "legacy: freeze the projector")
    freeze_mm_vision_resampler: bool = flag(False, "legacy: accepted, unused")
    mpt_attn_impl: str | None = flag("triton", "accepted, unused")
    model_max_length: int = flag(4096, "longest sequence in tokens, image features included; the rest is cut off")
    double_quant: bool = flag(True, "4-bit loading: quantise the quantisation constants too")
    quant_type: str = flag("nf4", "4-bit loading: nf4 or fp4")
    bits: int = flag(16, "4 or 8: load the base with bitsandbytes; 16: as it is")
    adapter: str = flag(
        "none",
        f"this tree: what is trained in place of a model's own weights: {', '.join(ADAPTERS)}; alone, unless "
        "--mm_tunable_parts names parts to be trained beside it",
    )
    adapter_r: int | None = flag(
        None,
        "this tree: rank of all kinds of LoRA, width of houlsby's bottleneck; mora has as many weights as LoRA of this "
        "rank; default: --lora_r",
    )
    adapter_alpha: int | None = flag(None, "this tree: scale times rank of all kinds of LoRA; default: --lora_alpha")
    adapter_dropout: float | None = flag(
        None,
        "this tree: of lora, rslora, dora in trainer_mode regular; pissa and milora have none; default: --lora_dropout",
    )
    adapter_targets: str = flag(
        "mm_language_model",
        "this tree: comma list of the parts that are adapted: mm_language_model, mm_mlp_adapter, mm_vision_tower",
    )
    adapter_tokens: int = flag(20, "this tree: virtual tokens of prefix and prompt")
    cycle_blocks: int = flag(
        0,
        "this tree: N: all weights are trained, one block of layers at a time for N steps each, in the memory of one "
        "block (BAdam); word embeddings and head stay as they are",
    )
    lora_enable: bool = flag(False, "as --adapter lora, with LLaVA-NeXT's parts (the projector too, and then its rate)")
    lora_r: int = flag(64, "LoRA rank")
    lora_alpha: int = flag(16, "LoRA scale times rank")
    lora_dropout: float = flag(0.05, "LoRA dropout")
    lora_weight_path: str = flag("", "accepted, unused")
    lora_bias: str = flag("none", "none, all or lora_only")
    mm_projector_lr: float | None = flag(None, "own learning rate of the projector")
    mm_vision_tower_lr: float | None = flag(None, "own learning rate of the vision tower")
    mm_feature_cache: str | None = flag(
        None, "this tree: folder that keeps the image features of frozen modules across epochs and runs"
    )
    mm_feature_cache_gb: float = flag(20.0, "this tree: most that the folder may take, in GiB; the oldest go first")
    group_by_varlen: bool = flag(False, "sampler: batches of similar length, varlen flavour")
    group_by_modality_length: bool = flag(False, "sampler: batches of one modality and similar length")
    group_by_modality_length_auto: bool = flag(False, "sampler: modality and length, automatic flavour")
    stratify_answers: str = flag(
        "off",
        "this tree: auto: every answer that comes more than once is spread evenly over an epoch, alone or with "
        "group_by_modality_length; off: random order",
    )
    resume_with_changes: bool = flag(
        False, "this tree: an unfinished run goes on with other data or flags than it was begun with; they are recorded"
    )
    eval_metric: str = flag(
        "loss",
        f"this tree: what is measured on eval_data_path: loss (a supervised token's), {', '.join(METRICS)} (shares of "
        "generated answers that are right), or the mean of a MODULE:FUNCTION(predictions, references, records), of "
        "which more is better; --load_best_model_at_end True goes by it",
    )
    early_stopping_patience: int = flag(
        0, "this tree: the run ends when so many evaluations in a row were no better than the best one; 0: never"
    )
    verbose_logging: bool = flag(False, "log all arguments")
    attn_implementation: str = flag("flash_attention_2", "flash_attention_2, sdpa or eager")

    trainer_mode: str = flag("regular", "regular: backpropagation; zo: zeroth-order (MeZO)")
    zo_eps: float = flag(1e-3, "MeZO: size of the perturbation, in units of the weights")
    zo_objective: str = flag(
        "loss",
        "MeZO: what is to become better: loss; classification (loss among the answers of the training set); accuracy "
        "(of single tokens); exact_match or f1 of generated answers, or of these a MODULE:FUNCTION(predictions, "
        "references, records)",
    )
    zo_num_directions: int = flag(
        1, "MeZO: directions a step (with fzoo 8, with guided 4); forwards by estimator, see docs/mezo.md"
    )
    zo_estimator: str = flag("spsa", f"MeZO: how losses become projected gradients: {', '.join(ESTIMATORS)}")
    zo_rule: str = flag("sgd", f"MeZO: how projected gradients become a step: {', '.join(RULES)}")
    zo_momentum: float = flag(0.9, "MeZO: weight of a step against the next one, with --zo_rule momentum, adam, adamu")
    zo_window: int = flag(20, "MeZO: steps that --zo_rule momentum, adam and adamu look back; each costs its noise")
    zo_rms_decay: float = flag(0.99, "MeZO: share that the mean square of --zo_rule normalized keeps from step to step")
    zo_clip: float = flag(0.0, "MeZO: largest projected gradient that a step makes use of, as with QZO; 0: no limit")
    zo_anchor_steps: int = flag(5, "MeZO: steps from one anchor of --zo_estimator svrg to the next")
    zo_anchor_batches: int = flag(1, "MeZO: a step at an anchor has the records of so many steps; needs --max_steps")
    zo_rank: int = flag(4, "MeZO: rank of the directions of --zo_estimator lowrank")
    zo_basis_steps: int = flag(50, "MeZO: steps for which --zo_estimator lowrank keeps one of its factors")
    zo_tensor_scales: str = flag(
        "none",
        "MeZO: how large the noise of each weight is: none (1), norms or rms (in proportion to these of the weight "
        "before the run), or a JSON file of patterns of names and sizes",
    )
    zo_batch_growth: str | None = flag(
        None,
        "MeZO: records a step by the share of all records, as 0:4,0.3:20, over all processes; taken in parts of "
        "--per_device_train_batch_size; needs --max_steps",
    )
    zo_noise: str = flag(
        "gaussian",
        f"MeZO: distribution of a direction: {', '.join(NOISES)}, which is the default with fzoo and adam",
    )
    zo_seed: int = flag(0, "MeZO: seed of all directions of the run")
    zo_kernel: str = flag("auto", f"MeZO: who computes the noise, with equal results: {', '.join(KERNELS)}")
    zo_shard: str = flag(
        "none",
        "MeZO: none: each process has the whole model; fsdp: a shard of every weight, put together layer by layer, see "
        "docs/distributed.md",
    )
    zo_weight_storage: str = flag("native", f"MeZO: how 16-bit weights are kept: {', '.join(STORAGES)}")
    zo_cuda_graphs: str = flag(
        "auto", f"MeZO on CUDA: forwards as graphs of kernels, with equal results: {', '.join(GRAPHS)}"
    )
    zo_length_bucket: int = flag(64, "MeZO on CUDA: rows are padded to a multiple of so many tokens, a graph for each")
    zo_graph_memory_gb: float = flag(4.0, "MeZO on CUDA: most that graphs may take, in GiB; the least used go")
    zo_offload: str = flag(
        "none",
        "MeZO: cpu: weights stay in the host's memory and come to the card layer by layer, with equal results; auto: "
        "where the memory that is counted without is more than the card's",
    )
    zo_journal: bool = flag(True, "MeZO: record each step in OUTPUT_DIR/mezo_journal, to resume and replay from")
    zo_journal_sync_steps: int | None = flag(
        None,
        "MeZO: bring the journal to the disk after so many steps, which a power cut may cost (a killed process costs "
        "none); default: after each where that takes below 1 ms, else once a second",
    )
    zo_from_journal: str | None = flag(
        None, "MeZO: start from step N of another run's journal (DIR or DIR:N); --model_name_or_path as there"
    )
    zo_quantized_scales: bool = flag(
        False,
        "MeZO: train the scales of a base in 4 or 8 bits (--bits) in place of its weights, without an adapter (QZO); "
        "they are then not quantised themselves (--double_quant False)",
    )
    zo_parallel: str = flag(
        "data",
        f"MeZO: what several processes share out, {', '.join(PARALLEL)}: the records of a step, the losses of its "
        "directions (all have the same records), or both",
    )
    zo_check_ranks_steps: int = flag(
        100, "MeZO: processes compare an eighth of their weights every so many steps, and stop if they differ; 0: never"
    )
    zo_on_divergence: str = flag(
        "warn",
        "MeZO: what to do when the loss has risen from where it was lowest, and stays there: "
        f"{', '.join(ON_DIVERGENCE)}: from there on each step does harm; halve goes back to the best step by the "
        "journal, and on with half the rate",
    )
    zo_probe_steps: int = flag(
        0,
        "MeZO: every so many steps measure signal and curvature by six forwards, into OUTPUT_DIR/probes.json; "
        "changes no bit of the run; 0: never",
    )
    zo_max_bad_steps: int = flag(3, "MeZO: stop after this many steps in a row whose loss is not finite")

    finds_learning_rate: ClassVar[bool] = False
    """`--learning_rate auto`."""
    begun: ClassVar[Any] = None
    """A `Begun`, where a run goes on with another number of processes than it was begun with."""

    def __post_init__(self) -> None:
        if self.lora_enable and self.adapter == "none":
            self.adapter = "lora"
        self.lora_enable = self.adapter != "none"
        if not (self.load_best_model_at_end and self.journal_keeps_all):
            super().__post_init__()
            return
        # transformers asks for a saved checkpoint at each evaluation; here the journal has the best step
        self.load_best_model_at_end = False
        self.metric_for_best_model = self.metric_for_best_model or "loss"
        super().__post_init__()
        self.load_best_model_at_end = True

    @property
    def data_processes(self) -> int:
        """Processes whose records a step has: fewer than all where some share out the losses of a batch.

        In a run that goes on, those that it was begun with.
        """
        if self.begun is not None:
            return int(self.begun.processes)
        return self.data_processes_of(int(self.world_size))

    def data_processes_of(self, processes: int) -> int:
        """The same, of so many processes that begin a run."""
        return Settings.of(self).ranks(processes).rows if self.trainer_mode == "zo" and processes > 1 else processes

    @property
    def journal_keeps_all(self) -> bool:
        """Whether the journal stands for all checkpoints of this run."""
        return self.trainer_mode == "zo" and self.zo_journal


def hand_on(model_args: ModelArguments, data_args: Any) -> None:
    """Flags of the model that samples depend on too."""
    data_args.version = model_args.version
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end
