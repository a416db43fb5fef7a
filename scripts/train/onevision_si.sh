# Sourced by the *_onevision_si.sh scripts, after common.sh: what the methods have in common.
#
# run_preset METHOD [demo|0.5b|7b] [--dry_run] [flag ...] uses METHOD_FLAGS
# with STUDY_METHOD_FLAGS or, for the demo, DEMO_METHOD_FLAGS.

# Of the study, for every preset.
COMMON_FLAGS=(
    --version qwen_1_5
    --train_on_answers_only True
    --mm_projector_type mlp2x_gelu
    --mm_vision_select_layer -2
    --mm_use_im_start_end False
    --mm_use_im_patch_token False
    --group_by_modality_length True
    --image_aspect_ratio anyres_max_9
    --image_grid_pinpoints "(1x1),...,(6x6)"
    --mm_patch_merge_type spatial_unpad
    --lr_scheduler_type constant
    --weight_decay 0.0
    --gradient_accumulation_steps 1
    --gradient_checkpointing False
    --tf32 False
    --torch_compile False
    --lazy_preprocess True
    --frames_upbound 32
    --attn_implementation sdpa
    --dataloader_drop_last True
    --report_to none
)
STUDY_FLAGS=(
    --vision_tower google/siglip-so400m-patch14-384
    --mm_vision_tower_lr 1e-6
    --bf16 True
    --model_max_length 1792
    --dataloader_num_workers 4
    --logging_steps 10
)
# The tiny checkpoint brings its tower, and float32 is as fast as bfloat16 on a CPU.
DEMO_FLAGS=(
    --model_max_length 512
    --logging_steps 50
)

# The value of the user's last --$1 (or its other spellings), in run_preset; fails where it was not given.
given() {
    local index word value last="" found=1
    for ((index = 0; index < ${#extra[@]}; index++)); do
        word=${extra[index]}
        case $word in --*) ;; *) continue ;; esac
        value=True
        case $word in
        *=*) value=${word#*=} ;;
        *) case ${extra[index + 1]:---} in --*) ;; *) value=${extra[index + 1]} ;; esac ;;
        esac
        word=${word#--}
        word=${word%%=*}
        if [ "${word//-/_}" = "$1" ]; then last=$value found=0; fi
    done
    [ $found = 0 ] && echo "$last"
}

# Takes these flags, each with its value, out of the preset's.
without() {
    local -a kept=()
    local index
    for ((index = 0; index < ${#flags[@]}; index += 2)); do
        case " $* " in *" ${flags[index]#--} "*) ;; *) kept+=("${flags[@]:index:2}") ;; esac
    done
    flags=("${kept[@]}")
}

# The preset's flags that would defeat, without a word, what the user gave.
give_way() {
    local adapter
    adapter=$(given adapter) || adapter=none
    [ "$(given lora_enable)" = True ] && [ "$adapter" = none ] && adapter=lora
    if [ "$adapter" != none ]; then
        without learning_rate zo_eps # which are of whole models: adapters have their own
        parts=mm_language_model      # which stands for the adapter
    fi
    case $(given optim) in lomo | adalomo) without learning_rate mm_vision_tower_lr ;; esac # they have their own
    if given zo_estimator > /dev/null; then without zo_num_directions; fi # the estimator has its own
    if [ "$(given zo_estimator)" = fzoo ] && ! given learning_rate > /dev/null; then
        without learning_rate # which is of steps that follow the loss
        flags+=(--learning_rate auto)
    fi
    given max_steps > /dev/null || ! given num_train_epochs > /dev/null || without max_steps
    ! given learning_rate > /dev/null || without mm_vision_tower_lr # the preset has one rate for all parts
}

run_preset() {
    HELP="$ROOT/scripts/train/help.txt" help_if_asked "$0" "$@"
    local method=$1 preset=demo dry_run="" word model data data_of_preset="" images="" eval_data="" parts
    shift
    case "${1:-}" in
    demo | 0.5b | 7b) preset=$1 && shift ;;
    -* | "") ;;
    *) fail "unknown preset '$1': allowed are demo, 0.5b and 7b" ;;
    esac
    local -a flags extra=()
    for word in "$@"; do
        if [[ $word == --dry[_-]run ]]; then dry_run=1; else extra+=("$word"); fi
    done

    case $preset in
    demo)
        flags=("${COMMON_FLAGS[@]}" "${DEMO_FLAGS[@]}" "${METHOD_FLAGS[@]}" "${DEMO_METHOD_FLAGS[@]}")
        model="$ROOT/playground/tiny-llava-onevision"
        data_of_preset="$ROOT/playground/data/scan/train.json"
        images="$ROOT/playground/data/scan"
        eval_data="$ROOT/playground/data/scan/test.json"
        parts=mm_language_model
        ;;
    0.5b | 7b)
        flags=("${COMMON_FLAGS[@]}" "${STUDY_FLAGS[@]}" "${METHOD_FLAGS[@]}" "${STUDY_METHOD_FLAGS[@]}")
        model="lmms-lab/llava-onevision-qwen2-$preset-si"
        parts=mm_vision_tower,mm_mlp_adapter,mm_language_model
        [ "$preset" = 7b ] && parts=mm_language_model
        ;;
    esac
    give_way
    model=${MODEL:-$model}
    images=${IMAGE_FOLDER-$images}
    data=$(given data_path) || data=${DATA_PATH:-$data_of_preset}
    # an evaluation set belongs to the preset's own data; with other data it has to be named
    [ "$data" = "$data_of_preset" ] || eval_data=""
    eval_data=${EVAL_DATA-$eval_data}
    [ -n "$data" ] || fail "preset $preset has no data of its own: set DATA_PATH to a LLaVA JSON (and IMAGE_FOLDER to its images)"

    flags+=(
        --model_name_or_path "$model"
        --data_path "$data"
        --output_dir "${OUTPUT_DIR:-$ROOT/runs/$method-$preset}"
        --mm_tunable_parts "${MM_TUNABLE_PARTS:-$parts}"
    )
    [ -z "$images" ] || flags+=(--image_folder "$images")

    local -a command=("$ROOT/scripts/train/run_and_evaluate.py" --preset "$preset" --num_gpus "${NUM_GPUS:-1}"
        --eval_data "$eval_data" --eval_metric "${EVAL_METRIC:-exact}" -- "${flags[@]}" ${extra[@]+"${extra[@]}"})
    if [ -n "$dry_run" ]; then
        printf '%q ' python "${command[@]}"
        echo
        return
    fi
    use_python
    echo "Looking at flags and data; Python takes some seconds to load PyTorch ..." >&2
    exec "$PY" "${command[@]}"
}
