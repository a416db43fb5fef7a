"""A public set as LLaVA JSON, with the study's prompts, sizes and pictures.

    python -m llava.data.prepare br35h --source brain-tumor-detection --output data/br35h
    python -m llava.data.prepare we_math --output data/we_math
    python -m llava.data.prepare chartqa --source "ChartQA Dataset" --output data/chartqa
    python -m llava.data.prepare snippets --source vaderSentiment-3.3.2.tar.gz --output data/snippets

writes train.json, val.json, test.json, images/ and manifest.json. `--source` is a local copy, a folder of parquet
files or a Hugging Face hub id; docs/data.md has the layouts. Equal sources and flags give equal bytes. Nothing is
overwritten, and a run that fails or is interrupted leaves nothing behind.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from llava.data.items import SourceSet
from llava.data.prepared_folder import write_manifest, write_split
from llava.data.public_sets import br35h, chartqa, snippets, we_math
from llava.data.splits import SPLITS, Divide, Sizes, balanced, grouped, published
from llava.errors import InputError, command_with
from llava.mezo.command_line import Parser
from llava.mezo.new_folder import new_folder
from llava.utils import setup_logging


@dataclass(frozen=True)
class PublicSet:
    """How a set is read (source, prompt, seed) and divided, and what it is asked and measured with."""

    load: Callable[[str, str, int], SourceSet]
    divide: Divide
    sizes: Sizes
    prompts: tuple[str, ...]
    prompt: int  # the usual one of `prompts`, from 1
    source: str | None  # where it comes from without --source
    metric: str
    place: str = ""  # where to find what has no hub id


SETS = {
    "br35h": PublicSet(
        br35h.load, balanced, br35h.SIZES, br35h.PROMPTS, br35h.CHOSEN_PROMPT, None, "exact", br35h.PLACE
    ),
    "we_math": PublicSet(we_math.load, grouped, we_math.SIZES, (we_math.PROMPT,), 1, we_math.HUB_ID, "choice"),
    "chartqa": PublicSet(chartqa.load, published, chartqa.SIZES, (chartqa.PROMPT,), 1, chartqa.HUB_ID, "relaxed"),
    "snippets": PublicSet(
        snippets.load, balanced, snippets.SIZES, (snippets.PROMPT,), 1, None, "exact", snippets.PLACE
    ),
}


def prepare(
    task: str, source: str, output: Path, prompt: str, sizes: Sizes, max_side: int, seed: int
) -> dict[str, Any]:
    """Read a set, divide it and write it to `output`; returns the manifest.

    Args:
        task: a key of `SETS`.
        prompt: the human turn, with fields for what the set fills in.
        sizes: records of train, val and test; scaled down if the set is smaller.
        max_side: in pixels; longer pictures are scaled down to it.
    """
    chosen = SETS[task]
    with new_folder(output, "--output") as folder:
        found = chosen.load(source, prompt, seed)
        divided = chosen.divide(found.items, sizes, seed)
        manifest = {
            "task": task,
            "source": source,
            "source_records": found.records,
            "left_out": found.left_out,
            "prompt": prompt,
            "seed": seed,
            "sizes": sizes,
            "max_side": max_side,
            "pillow": PIL.__version__,
            "splits": {split: write_split(folder, split, task, items, max_side) for split, items in divided.items()},
        }
        write_manifest(folder, manifest)
    return manifest


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Make LLaVA JSON of a public set.")
    parser.add_argument("task", help=f"one of {', '.join(SETS)}")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; must not exist or be empty")
    parser.add_argument("--source", help="folder or hub id; default: the set's hub id (br35h and snippets have none)")
    parser.add_argument("--prompt", type=int, metavar="N", help="br35h: 1 to 7, which of the study's; default 5")
    parser.add_argument("--max-side", type=int, default=384, help="pixels of the longer side, at most")
    for split in SPLITS:
        usual = ", ".join(f"{chosen.sizes[split]} {task}" for task, chosen in SETS.items())
        parser.add_argument(f"--{split}", type=int, metavar="N", help=f"records; default: {usual}")
    parser.add_argument("--seed", type=int, default=42, help="decides splits and the order of options")
    return parser


def _checked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags as arguments of `prepare`."""
    task = arguments.task
    if task not in SETS:
        raise InputError(f"{task}: unknown set; choose one of {', '.join(SETS)}")
    chosen = SETS[task]
    sizes = {split: getattr(arguments, split) for split in SPLITS}
    sizes = {split: chosen.sizes[split] if size is None else size for split, size in sizes.items()}
    for flag, value, least in [*((s, n, 1) for s, n in sizes.items()), ("max-side", arguments.max_side, 1)]:
        if value < least:
            raise InputError(f"--{flag} {value}: must be at least {least}")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed}: must be at least 0")
    number, known = arguments.prompt, len(chosen.prompts)
    if number is not None and known == 1:
        raise InputError(f"--prompt {number}: {task} has one prompt; the flag is for br35h")
    if number is not None and not 1 <= number <= known:
        raise InputError(f"--prompt {number}: {task} has prompts 1 to {known}")
    source = chosen.source if arguments.source is None else arguments.source
    if source is None:
        raise InputError(f"--source is not set: {task} is {chosen.place}")
    return {
        "task": task,
        "source": source,
        "output": arguments.output,
        "prompt": chosen.prompts[(number or chosen.prompt) - 1],
        "sizes": sizes,
        "max_side": arguments.max_side,
        "seed": arguments.seed,
    }


def _summary(output: Path, manifest: dict[str, Any]) -> str:
    """What was written, and the command that trains on it."""
    lines = []
    for split, part in manifest["splits"].items():
        kinds, answers = part["kinds"], part["answers"]
        lines.append(f"{output / split}.json: {part['records']} records, {part['images']} pictures")
        if kinds != answers["most_common"]:
            lines.append(f"  kinds: {_counts(kinds)}")
        lines.append(f"  {answers['different']} different answers: {_counts(answers['most_common'])}")
    metric = SETS[manifest["task"]].metric
    settings: dict[str, object] = {
        "DATA_PATH": output / "train.json",
        "IMAGE_FOLDER": output,
        "EVAL_DATA": output / "test.json",
    }
    settings |= {} if metric == "exact" else {"EVAL_METRIC": metric}
    given = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in settings.items())
    return "\n".join([*lines, f"train on it: {given} bash scripts/train/mezo_onevision_si.sh 0.5b"]) + "\n"


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


@command_with(_parser, data_path="source")
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    arguments = _checked(_parser().parse_args(argv))
    setup_logging()
    manifest = prepare(**arguments)
    sys.stdout.write(_summary(arguments["output"], manifest))


if __name__ == "__main__":
    main()
