"""What a run needs from disk and hub, looked at before anything is loaded.

Each thing that is missing is one line that names the flag (and the script's variable) to set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.model.checkpoint_kind import check_model, check_tower, looks_local
from llava.samples.loading import data_files

_GATHER = "zero_optimization.stage3_gather_16bit_weights_on_model_save"


def check_paths(model_args: Any, data_args: Any) -> None:
    """Data files, model, vision tower, projector file and folders exist, and the model can be used as one."""
    for file in data_files(data_args.data_path):
        if not Path(file).is_file():
            raise InputError(f"--data_path {file}: no such file; set DATA_PATH or --data_path to a LLaVA JSON")
    images, own_class = model_args.vision_tower is not None, model_args.model_class_name is not None
    check_model(model_args.model_name_or_path, "--model_name_or_path", "MODEL", images=images, any_class=own_class)
    if model_args.vision_tower is not None and looks_local(model_args.vision_tower):
        check_tower(model_args.vision_tower, "--vision_tower", "VISION_TOWER")
    for flag, value in (
        ("--pretrain_mm_mlp_adapter", model_args.pretrain_mm_mlp_adapter),
        ("--image_folder (IMAGE_FOLDER)", data_args.image_folder),
        ("--video_folder", data_args.video_folder),
    ):
        if value is not None and not Path(value).exists():
            raise InputError(f"{flag} {value}: no such file or folder")


def check_gathering(training_args: Any) -> None:
    """`InputError` where `--deepspeed` leaves the weights in pieces at the end, so that no model would be saved."""
    config = getattr(training_args, "hf_deepspeed_config", None)  # only there with --deepspeed
    if config is None or not config.is_zero3() or config.is_true(_GATHER) or config.get_value(_GATHER) == "auto":
        return
    raise InputError(
        f"--deepspeed {training_args.deepspeed}: ZeRO stage 3 without {_GATHER} writes no model: set it to true there"
    )
