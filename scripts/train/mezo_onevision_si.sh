#!/usr/bin/env bash
# MeZO fine-tuning of LLaVA-OneVision on single images, with evaluation before and after.
#
#   bash scripts/train/mezo_onevision_si.sh [demo|0.5b|7b] [any llava/train/train.py flag ...] [--dry_run]
#
# demo (default)  the tiny checkpoint and scan task of playground/; 3 to 6 minutes on two CPU cores
# 0.5b, 7b        lmms-lab/llava-onevision-qwen2-{0.5b,7b}-si with the study's hyper-parameters; set DATA_PATH
#
# Environment: MODEL, DATA_PATH, IMAGE_FOLDER, OUTPUT_DIR, MM_TUNABLE_PARTS, NUM_GPUS override the preset;
# EVAL_DATA is a LLaVA JSON for the accuracy before and after (set but empty: no evaluation), EVAL_METRIC its
# metric (exact, choice or relaxed). Flags after the preset go to train.py and win.
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
