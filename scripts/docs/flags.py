"""docs/flags.md: the flags of a training run with default and help, from the dataclasses that define them.

    python scripts/docs/flags.py              writes the file
    python scripts/docs/flags.py --check      exits with 1 if it is out of date

What transformers defines is left out. Flags whose help begins with "MeZO" have a table of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from generated import ROOT, table, write_or_check

from llava.train.flags.adapter_flags import DEFAULTS
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments

DOCUMENT = ROOT / "docs" / "flags.md"
MEZO, OURS = "MeZO", "this tree: "
SECTIONS = {
    "The model": (
        ModelArguments,
        "Which model is trained, how its parts are put together, and which of them are tuned.",
    ),
    "The data": (DataArguments, "Which samples are read and how they become token ids and pixels."),
    "The run": (TrainingArguments, "How the run goes, beside what transformers has flags for."),
}
INTRODUCTION = """\
# Flags

Made by `python scripts/docs/flags.py` of `llava/train/flags/arguments.py`; do not edit it here.

Names and defaults are those of LLaVA-NeXT; flags marked *this tree:* are not there. The flags of transformers'
`TrainingArguments` (`--learning_rate`, `--max_steps`, `--per_device_train_batch_size`, ...) act as well;
`python -m llava.train.train --help` lists all. What to set first is in the [README](../README.md#flags-that-matter),
how MeZO's flags act is in [mezo.md](mezo.md); `--report_to` is in [trackers.md](trackers.md).
"""


def document() -> str:
    """The whole text."""
    parts, of_mezo = [INTRODUCTION], []
    for title, (group, sentence) in SECTIONS.items():
        fields = {one.name: one for one in dataclasses.fields(group)}
        own = [fields[name] for name in group.__annotations__ if name in fields]
        of_mezo += [one for one in own if _help(one).startswith(MEZO)]
        parts.append(_section(title, sentence, [one for one in own if one not in of_mezo]))
    parts.append(_adapters())
    parts.append(_section(MEZO, "Zeroth-order training: these act with `--trainer_mode zo`.", of_mezo))
    return "\n".join(parts)


def _adapters() -> str:
    rows = [[f"`{kind}`", f"{d.zo_rate:g}", f"{d.zo_eps:g}", f"{d.rate:g}"] for kind, d in DEFAULTS.items()]
    head = ["`--adapter`", "`--learning_rate`, MeZO", "`--zo_eps`", "`--learning_rate`, AdamW"]
    return (
        "## Adapters\n\nRates and eps where the flags do not say, from a drawn task and a tiny model "
        f"([reproduction.md](reproduction.md#adapters)).\n\n{table(head, rows)}"
    )


def _section(title: str, sentence: str, fields: list[dataclasses.Field[Any]]) -> str:
    rows = [[f"`--{one.name}`", _default(one), _shown(_help(one))] for one in fields]
    return f"## {title}\n\n{sentence}\n\n{table(['flag', 'default', 'meaning'], rows)}"


def _help(field: dataclasses.Field[Any]) -> str:
    said = field.metadata.get("help")
    if not said:
        raise SystemExit(f"--{field.name} has no help in llava/train/flags/arguments.py")
    return str(said)


def _shown(said: str) -> str:
    """The help as it stands in a table: without "MeZO:", and with our own flags marked."""
    if said.startswith(OURS):
        return f"*{OURS.strip()}* {_plain(said.removeprefix(OURS))}"
    return _plain(said.removeprefix(MEZO).removeprefix(":").strip())


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "<*":
        text = text.replace(mark, f"\\{mark}")
    return text


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is None:
        return "none"
    return f"`{field.default}`" if field.default != "" else "empty"


if __name__ == "__main__":
    write_or_check("flags.py", DOCUMENT, document)
