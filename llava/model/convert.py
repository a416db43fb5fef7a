"""From a LLaVA checkpoint to Hugging Face's LlavaOnevisionForConditionalGeneration and back, tensor for tensor.

    python -m llava.model.convert --from runs/mine --to runs/mine-hf        and
    python -m llava.model.convert --from llava-hf/llava-onevision-qwen2-0.5b-si-hf --to base

The direction follows from the format of `--from`. What is written loads in plain transformers (AutoProcessor,
AutoModelForImageTextToText), or with `load_pretrained_model` here, and answers alike. docs/checkpoints.md has more.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi

from llava.errors import InputError, command_with
from llava.mezo.command_line import Parser
from llava.mezo.new_folder import check_new, new_folder
from llava.model.card import history_of, write_card
from llava.model.checkpoint_files import find_file, first_line, read_json
from llava.model.checkpoint_kind import looks_local
from llava.model.hf.agreement import check_agreement
from llava.model.hf.folders import OursToTheirs, Source, TheirsToOurs
from llava.model.hf.from_hf import is_theirs
from llava.model.hf.to_hf import IMAGES_ONLY
from llava.utils import setup_logging

logger = logging.getLogger("llava.model.convert")  # also where this file is the command

VERIFIED_BYTES = 10**9
"""Larger checkpoints are verified when asked for: both models are loaded in float32, one after the other."""


def convert(source: str, target: Path, verify: bool | None = None, images_only: bool = False) -> None:
    """Write the checkpoint `source`, a folder or hub id, in the other format.

    Args:
        target: folder that does not exist, or is empty. It is there whole or not at all.
        verify: compare the logits of both; None: where the weights have at most `VERIFIED_BYTES`.
        images_only: convert it although videos would be merged in another way.

    Raises:
        InputError: something that cannot be read, or that the other format cannot express.
    """
    check_new(target, "--to")
    file = find_file(source, "config.json")
    if file is None:
        raise InputError(_not_there(source))
    values = read_json(file)
    theirs = is_theirs(values, source)
    opened = Source.open(source, values)
    conversion = TheirsToOurs(opened) if theirs else OursToTheirs(opened, images_only)
    here, there = (THEIRS, OURS) if theirs else (OURS, THEIRS)
    logger.info("%s is %s; %s is written to %s", source, here, there, target)
    _check_space(target, opened.size)
    with new_folder(target, "--to") as folder:
        conversion.write(folder)
        if verify or (verify is None and opened.size <= VERIFIED_BYTES):
            ours, other = (str(folder), source) if theirs else (source, str(folder))
            check_agreement(ours, other, images_only)
        elif verify is None:
            logger.info("the logits of both are not compared, as the checkpoint is large; --verify does")
        write_card(folder, source, *history_of(source))
    logger.info("%s: %.1f GB of weights", target, opened.size / 1e9)


OURS = "a LLaVA checkpoint"
THEIRS = "Hugging Face's LlavaOnevisionForConditionalGeneration"


def _not_there(source: str) -> str:
    if Path(source).is_dir():
        return f"--from {source}: the folder has no config.json; give the folder of a whole model"
    if looks_local(source):
        return f"--from {source}: no such folder; give a model folder or a hub id"
    return f"--from {source}: not a folder here, not in the hub cache, and the hub does not give it"


def _check_space(target: Path, needed: int) -> None:
    existing = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"--to {target}: the disk has {free / 1e9:.1f} GB left, but the weights need {needed / 1e9:.1f}"
        )


def push(folder: Path, repository: str) -> None:
    """Upload a converted folder to the hub.

    Raises:
        InputError: the hub cannot be reached, or does not take it.
    """
    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=repository)
    except Exception as error:  # the hub client raises a dozen unrelated types
        said = first_line(error)
        raise InputError(
            f"--push_to_hub {repository}: {said}; {folder} is complete and can be uploaded later"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="checkpoint: a folder or hub id")
    parser.add_argument(
        "--to", dest="target", required=True, type=Path, metavar="FOLDER", help="must not exist, or be empty"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="compare the logits of both, on pictures, a video and text (default: up to 1 GB of weights)",
    )
    parser.add_argument(
        IMAGES_ONLY,
        action="store_true",
        help="convert a checkpoint that merges videos as the other format cannot; do not ask it about videos there",
    )
    parser.add_argument("--push_to_hub", metavar="ID", help="upload the folder to this repository afterwards")
    return parser


@command_with(_parser)
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    options = _parser().parse_args(argv)
    setup_logging()
    convert(options.source, options.target, options.verify, options.images_only)
    if options.push_to_hub is not None:
        push(options.target, options.push_to_hub)


if __name__ == "__main__":
    main()
