#!/usr/bin/env bash
# MeZO fine-tuning of LLaVA-OneVision on single images, with evaluation before and after.
#
#   bash scripts/train/mezo_onevision_si.sh [demo|0.5b|7b] [any llava/train/train.py flag ...] [--dry_run]
#
# The demo takes 3 to 6 minutes on two CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
source "$ROOT/scripts/train/onevision_si.sh"

METHOD_FLAGS=(
    --trainer_mode zo
    --zo_eps 1e-3
    --zo_num_directions 1
    --per_device_train_batch_size 4
)
STUDY_METHOD_FLAGS=(
    --learning_rate 1e-6
    --max_steps 5000
)
DEMO_METHOD_FLAGS=(
    --learning_rate 1e-4
    --max_steps 3000
)
run_preset mezo "$@"
