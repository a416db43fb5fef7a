#!/usr/bin/env bash
# Pre-train the tiny LLaVA-OneVision checkpoint of playground/ from nothing, on drawings of our own.
#
#   bash scripts/train/pretrain_tiny.sh [any llava/train/train.py flag ...]
#
# Recipe: AdamW, lr 1e-3 with a cosine and 100 steps of warm-up, 7000 steps of 24 conversations (up to four questions
# about one 56-pixel drawing), all parts trained in float32 by train.py in regular mode, answers supervised alone.
# About an hour on two CPU cores: 10 minutes of drawing, 45 of training. For the first 2000 steps the loss creeps; then
# the model begins to find places in the picture.
# BUILD (default runs/pretrain-tiny) takes the drawings (about 700 MB on disk), the run and a report of the accuracy of
# every question type; OUTPUT (default playground/tiny-llava-onevision) the packed checkpoint. An unfinished run is
# resumed. STEPS is the number of steps (7000).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
help_if_asked "${BASH_SOURCE[0]}" "$@"
use_python

BUILD=${BUILD:-$ROOT/runs/pretrain-tiny}
OUTPUT=${OUTPUT:-$ROOT/playground/tiny-llava-onevision}
STEPS=${STEPS:-7000}
BATCH=24
mkdir -p "$BUILD"

[ -f "$BUILD/drawings/train.json" ] ||
    "$PY" -m llava.toy.pretraining --output "$BUILD/drawings" --samples $((STEPS * BATCH)) --seed 7
[ -f "$BUILD/check/train.json" ] ||
    "$PY" -m llava.toy.pretraining --output "$BUILD/check" --samples 2100 --first 10000000 --rounds 1 --seed 7
[ -d "$BUILD/untrained/vision_tower" ] || "$PY" -m llava.toy.tiny_model --output "$BUILD/untrained" --seed 0

"$PY" -m llava.train.train \
    --model_name_or_path "$BUILD/untrained/language_model" \
    --vision_tower "$BUILD/untrained/vision_tower" \
    --version qwen_1_5 \
    --mm_tunable_parts mm_vision_tower,mm_mlp_adapter,mm_language_model \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_patch_merge_type spatial_unpad \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio square \
    --data_path "$BUILD/drawings/train.json" \
    --image_folder "$BUILD/drawings" \
    --train_on_answers_only True \
    --output_dir "$BUILD/run" \
    --trainer_mode regular \
    --max_steps "$STEPS" \
    --per_device_train_batch_size "$BATCH" \
    --learning_rate 1e-3 \
    --mm_vision_tower_lr 1e-3 \
    --lr_scheduler_type cosine \
    --warmup_steps 100 \
    --weight_decay 0 \
    --adam_beta2 0.98 \
    --max_grad_norm 1.0 \
    --gradient_checkpointing False \
    --attn_implementation sdpa \
    --model_max_length 1024 \
    --logging_steps 25 \
    --save_strategy steps \
    --save_steps 500 \
    --save_total_limit 1 \
    --report_to none \
    --seed 0 \
    "$@"

"$PY" -m llava.toy.pack_checkpoint --run "$BUILD/run" --output "$OUTPUT"

# Accuracy of every question type on drawings that training has not seen, and of the demo's tasks before fine-tuning.
"$PY" -m llava.eval.accuracy --model-path "$OUTPUT" --data "$BUILD/check/train.json" --image-folder "$BUILD/check" \
    --batch-size 32 --group-by kind --overwrite --output "$BUILD/check/answers.jsonl"
for task in scan figure chart; do
    "$PY" -m llava.eval.accuracy --model-path "$OUTPUT" --data "$ROOT/playground/data/$task/val.json" \
        --image-folder "$ROOT/playground/data/$task" --batch-size 32 --group-by kind --overwrite \
        --output "$BUILD/check/$task.jsonl"
done
