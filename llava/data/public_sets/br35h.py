"""Br35H: brain scans in two folders, `yes` (with a tumor) and `no`.

Published on Kaggle as ahmedhamada0/brain-tumor-detection, 1500 pictures of each. The archive has more folders (`pred`
and others), which have no part in this.
"""

from __future__ import annotations

import logging
from pathlib import Path

from llava.data import prompts
from llava.data.items import Item, SourceSet
from llava.data.sources import find_folder, source_folder
from llava.errors import InputError

logger = logging.getLogger(__name__)

CHOSEN_PROMPT = 5
PROMPTS = prompts.SCANS
SIZES = {"train": 1000, "val": 500, "test": 1000}
ANSWERS = {"yes": "Yes", "no": "No"}  # by folder
PLACE = "on kaggle.com/datasets/ahmedhamada0/brain-tumor-detection; unpack it and give the folder"
_SUFFIXES = (".jpg", ".jpeg", ".png")


def load(source: str, template: str, seed: int) -> SourceSet:
    """All pictures but later copies of the same file; `template` is the prompt.

    A file that is in both folders has no known answer: all of its copies are left out. Both are logged and counted.

    Raises:
        InputError: no such folder, or it has no pictures.
    """
    top = source_folder(source, hub=False)
    assert top is not None  # hub ids are refused
    folder = find_folder(top, lambda path: all((path / name).is_dir() for name in ANSWERS), "yes/ and no/")
    _log_ignored(top, [] if folder == top else [folder.name])
    _log_ignored(folder, list(ANSWERS))
    items = [item for name in ANSWERS for item in _pictures(folder, name, template)]
    return _without_copies(items)


def _pictures(folder: Path, name: str, template: str) -> list[Item]:
    files = sorted(path for path in (folder / name).iterdir() if path.is_file() and path.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"--source {folder}: {name}/ has no pictures ({', '.join(_SUFFIXES)})")
    _log_ignored(folder / name, [file.name for file in files])
    return [Item(f"{name}/{f.name}", template, ANSWERS[name], ANSWERS[name], str(f), f.read_bytes) for f in files]


def _log_ignored(folder: Path, used: list[str]) -> None:
    """Say what else a folder has; nothing of it if `used` is empty."""
    others = sorted({path.name for path in folder.iterdir()} - set(used)) if used else []
    if others:
        logger.info("%s: not used: %s%s", folder, ", ".join(others[:10]), " and others" if len(others) > 10 else "")


def _without_copies(items: list[Item]) -> SourceSet:
    alike: dict[str, list[Item]] = {}
    for item in items:
        alike.setdefault(item.fingerprint(), []).append(item)
    clear = [group for group in alike.values() if len({item.answer for item in group}) == 1]
    if len({group[0].answer for group in clear}) < len(ANSWERS):
        raise InputError("--source: all pictures of yes/ or of no/ are in the other folder too")
    left_out = {
        "copies of an earlier picture": sum(len(group) - 1 for group in clear),
        "pictures in both classes": len(items) - sum(map(len, clear)),
    }
    for reason, number in left_out.items():
        if number:
            logger.warning("left out: %d %s", number, reason)
    return SourceSet([group[0] for group in clear], len(items), left_out)
