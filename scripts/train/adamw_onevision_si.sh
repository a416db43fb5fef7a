#!/usr/bin/env bash
# AdamW fine-tuning of LLaVA-OneVision on single images: the study's baseline for MeZO, with the same interface.
#
#   bash scripts/train/adamw_onevision_si.sh [demo|0.5b|7b] [any llava/train/train.py flag ...] [--dry_run]
#
# The demo takes 2 to 3 minutes on two CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
source "$ROOT/scripts/train/onevision_si.sh"

METHOD_FLAGS=(
    --trainer_mode regular
    --per_device_train_batch_size 1
    --max_steps 3000
    --save_strategy steps
    --save_steps 1000
    --save_total_limit 1
)
STUDY_METHOD_FLAGS=(
    --learning_rate 1e-6
)
DEMO_METHOD_FLAGS=(
    --learning_rate 1e-4
)
run_preset adamw "$@"
