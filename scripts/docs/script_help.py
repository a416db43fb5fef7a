"""scripts/train/help.txt: what `--help` of the *_onevision_si.sh scripts prints after their usage.

    python scripts/docs/script_help.py              writes the file
    python scripts/docs/script_help.py --check      exits with 1 if it is out of date

A file, since the help needs no Python; flags of this tree have the help that docs/flags.md has.
"""

from __future__ import annotations

import dataclasses
import textwrap

from generated import ROOT, write_or_check

from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments

HELP = ROOT / "scripts" / "train" / "help.txt"
INTRODUCTION = """\
Presets (the first word; default: demo)
  demo      the tiny checkpoint and scan task of playground/, on a CPU
  0.5b, 7b  lmms-lab/llava-onevision-qwen2-{0.5b,7b}-si with the study's settings; set DATA_PATH

Environment variables, each in place of what the preset has
  MODEL             checkpoint: hub id or folder
  DATA_PATH         LLaVA JSON to train on, and whatever else docs/data.md lists
  IMAGE_FOLDER      folder in front of the image paths of the records
  EVAL_DATA         LLaVA JSON for the accuracy before and after; set but empty: none
  EVAL_METRIC       exact (default), choice or relaxed
  OUTPUT_DIR        folder of the run; an unfinished run there is gone on with
  MM_TUNABLE_PARTS  what is trained, as --mm_tunable_parts
  NUM_GPUS          processes, one a GPU (default 1)
  PYTHON            Python >= 3.10 to begin with

Flags after the preset win over it (--num_train_epochs also over its --max_steps); the ten that matter:
"""
CLOSING = """\

--dry_run shows the complete command and starts nothing; -h and --help this page.
docs/flags.md has all flags, docs/choosing.md which method fits a card, docs/performance.md measured times.
"""
OF_TRANSFORMERS = {
    "learning_rate": "decides more than anything else, see docs/tuning.md; auto finds one, and does with "
    "--zo_estimator fzoo; adapters have their own",
    "max_steps": "length of the run in steps",
    "num_train_epochs": "length of the run in epochs, where --max_steps is not given",
    "per_device_train_batch_size": "records a step and process; larger is calmer",
}
"""Their own help is too long for a page."""
NAMES = (
    *("max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "mm_tunable_parts", "adapter"),
    *("zo_eps", "zo_num_directions", "model_max_length", "mm_feature_cache"),
)


def document() -> str:
    """The whole text."""
    kinds = (ModelArguments, DataArguments, TrainingArguments)
    helps = {one.name: str(one.metadata.get("help", "")) for kind in kinds for one in dataclasses.fields(kind)}
    lines = []
    for name in NAMES:
        said = OF_TRANSFORMERS.get(name) or helps[name].removeprefix("this tree: ")
        head = f"  --{name}  "
        width = 2 + 2 + max(map(len, NAMES)) + 2
        lines.append(textwrap.fill(said, 110, initial_indent=head.ljust(width), subsequent_indent=" " * width))
    return "\n".join((INTRODUCTION + "\n".join(lines), CLOSING))


if __name__ == "__main__":
    write_or_check("script_help.py", HELP, document)
