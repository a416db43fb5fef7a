"""What a run needs from disk and hub, looked at before anything is loaded.

Each thing that is missing is one line that names the flag (and the script's variable) to set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.model.checkpoint_files import check_model, looks_local
from llava.samples.loading import data_files


def check_paths(model_args: Any, data_args: Any) -> None:
    """Data files, model, vision tower, projector file and folders exist; nothing is read yet."""
    for file in data_files(data_args.data_path):
        if not Path(file).is_file():
            raise InputError(f"--data_path {file}: no such file; set DATA_PATH or --data_path to a LLaVA JSON")
    check_model(model_args.model_name_or_path, "--model_name_or_path", "MODEL")
    if model_args.vision_tower is not None and looks_local(model_args.vision_tower):
        check_model(model_args.vision_tower, "--vision_tower", "VISION_TOWER")
    for flag, value in (
        ("--pretrain_mm_mlp_adapter", model_args.pretrain_mm_mlp_adapter),
        ("--image_folder (IMAGE_FOLDER)", data_args.image_folder),
        ("--video_folder", data_args.video_folder),
    ):
        if value is not None and not Path(value).exists():
            raise InputError(f"{flag} {value}: no such file or folder")
