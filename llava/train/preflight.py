"""What a run needs from disk and hub, looked at before anything is loaded.

Each thing that is missing is one line that names the flag (and the script's variable) to set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llava.data.loading import data_files
from llava.errors import InputError


def check_paths(model_args: Any, data_args: Any) -> None:
    """Data files, model, vision tower, projector file and folders exist; nothing is read yet."""
    for file in data_files(data_args.data_path):
        if not Path(file).is_file():
            raise InputError(f"--data_path {file}: no such file; set DATA_PATH or --data_path to a LLaVA JSON")
    check_model(model_args.model_name_or_path, "--model_name_or_path", "MODEL")
    if model_args.vision_tower is not None and _looks_local(model_args.vision_tower):
        check_model(model_args.vision_tower, "--vision_tower", "VISION_TOWER")
    for flag, value in (
        ("--pretrain_mm_mlp_adapter", model_args.pretrain_mm_mlp_adapter),
        ("--image_folder (IMAGE_FOLDER)", data_args.image_folder),
        ("--video_folder", data_args.video_folder),
    ):
        if value is not None and not Path(value).exists():
            raise InputError(f"{flag} {value}: no such file or folder")


def check_model(name: str, flag: str, variable: str) -> None:
    """`InputError` unless `name` is a folder with a config.json, or a hub id that is cached or can be reached."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise InputError(
                f"{flag} {name}: the folder has no config.json; set {variable} or {flag} to a model folder"
            )
        return
    if _looks_local(name):
        raise InputError(f"{flag} {name}: no such folder; set {variable} or {flag} to a model folder or a hub id")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        hf_hub_download(name, "config.json")
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise InputError(
            f"{flag} {name}: not a folder here, not in the hub cache, and the hub does not give it "
            f"({type(error).__name__}); set {variable} or {flag} to a folder that holds the model, or go online"
        ) from error


def _looks_local(name: str) -> bool:
    return os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") != 1
