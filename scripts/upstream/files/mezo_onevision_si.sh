#!/usr/bin/env bash
# MeZO fine-tuning of LLaVA-OneVision on single images: forward passes alone, in the memory of inference.
#
#   DATA_PATH=train.json IMAGE_FOLDER=images OUTPUT_DIR=runs/mine \
#       bash scripts/train/mezo_onevision_si.sh 0.5b|7b [any train.py flag ...] [--dry_run]
#
# The same command goes on with a run that was stopped. MODEL, MM_TUNABLE_PARTS, NUM_GPUS and PYTHON override what is
# below; flags after the preset win. docs/MeZO.md tells how to choose learning rate and eps for other data.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

fail() {
    echo "error: $*" >&2
    exit 2
}

case " $* " in
*" --help "* | *" -h "*) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
esac
PRESET=${1:-}
case $PRESET in
0.5b) PARTS=mm_vision_tower,mm_mlp_adapter,mm_language_model ;;
7b) PARTS=mm_language_model ;;
*) fail "preset '$PRESET': give 0.5b or 7b" ;;
esac
shift
[ -n "${DATA_PATH:-}" ] || fail "set DATA_PATH to a LLaVA JSON (and IMAGE_FOLDER to its images)"
[ -n "${OUTPUT_DIR:-}" ] || fail "set OUTPUT_DIR to a folder for the model and the run's journal"

DRY_RUN=""
EXTRA=()
for word in "$@"; do
    if [[ $word == --dry[_-]run ]]; then DRY_RUN=1; else EXTRA+=("$word"); fi
done

FLAGS=(
    --model_name_or_path "${MODEL:-lmms-lab/llava-onevision-qwen2-$PRESET-si}"
    --version qwen_1_5
    --data_path "$DATA_PATH"
    --image_folder "${IMAGE_FOLDER:-.}"
    --output_dir "$OUTPUT_DIR"
    --mm_tunable_parts "${MM_TUNABLE_PARTS:-$PARTS}"

    --trainer_mode zo
    --zo_eps 1e-3
    --zo_num_directions 1
    --learning_rate 1e-6
    --mm_vision_tower_lr 1e-6
    --per_device_train_batch_size 4
    --gradient_accumulation_steps 1
    --max_steps 5000
    --lr_scheduler_type constant
    --weight_decay 0.0
    --save_strategy no # the journal has every step

    --vision_tower google/siglip-so400m-patch14-384
    --mm_projector_type mlp2x_gelu
    --mm_vision_select_layer -2
    --mm_use_im_start_end False
    --mm_use_im_patch_token False
    --group_by_modality_length True
    --image_aspect_ratio anyres_max_9
    --image_grid_pinpoints "(1x1),...,(6x6)"
    --mm_patch_merge_type spatial_unpad
    --model_max_length 32768 # a longer sample would lose its answer
    --frames_upbound 32
    --lazy_preprocess True

    --bf16 True
    --tf32 False
    --gradient_checkpointing False
    --torch_compile False
    --attn_implementation sdpa
    --dataloader_num_workers 4
    --dataloader_drop_last True
    --logging_steps 10
    --report_to none
)

COMMAND=("${PYTHON:-python}")
case ${NUM_GPUS:-1} in
1) ;;
*[!0-9]* | "" | 0*) fail "NUM_GPUS=$NUM_GPUS: give a number from 1 on" ;;
*) COMMAND+=(-m torch.distributed.run --nproc_per_node "$NUM_GPUS") ;;
esac
COMMAND+=("$ROOT/llava/train/train_mem.py")
COMMAND+=("${FLAGS[@]}" ${EXTRA[@]+"${EXTRA[@]}"})
if [ -n "$DRY_RUN" ]; then
    printf '%q ' "${COMMAND[@]}"
    echo
    exit
fi
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "${COMMAND[@]}"
