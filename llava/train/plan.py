"""What fits a card, and what we would take: the memory of every method, counted before anything is loaded.

    python -m llava.train.plan --model 0.5b --gpu-memory 24 [--gpu rtx3090 --tokens 1500 --batch 4 --tiles 2]

`--model` is a folder (its config.json is read, no weights), one of the presets, or a hub id, whose config is then
fetched. docs/choosing.md says how the figures compare with measured ones, and what each method is worth.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llava.errors import InputError, command
from llava.mezo.command_line import Parser
from llava.model.families import config_for, model_class_for
from llava.model.multimodal_encoder.tower_config import describe_tower, tower_name
from llava.model.shapes import SHAPES, shape_config
from llava.train.cards import CARDS
from llava.train.footprint import Batch, Sizes, sizes_of
from llava.train.methods import GB, HOST_MEMORY, HOST_RESERVE, LORA_RANK, Row, largest_offloaded, rows
from llava.train.parts.tunable import LANGUAGE_MODEL, parse_parts


def config_of(model: str) -> Any:
    """The config of a preset, a folder or a hub id. Raises `InputError` for anything else."""
    if model in SHAPES:
        return shape_config(model)
    config: Any = config_for(model)
    name = tower_name(config)
    if name is None:
        raise InputError(f"--model {model} has no vision tower: give a LLaVA checkpoint, or {', '.join(SHAPES)}")
    if not config.name_or_path:
        config.name_or_path = model
    describe_tower(name, config).remember(config)
    return config


def sizes(model: str) -> Sizes:
    """Sizes of what `--model` names; nothing but its config is read."""
    config = config_of(model)
    with torch.device("meta"):
        return sizes_of(model_class_for(config, model)(config))


BEST_FIRST = (
    "full, AdamW",
    "full, AdamW, checkpointing",
    "full, AdaLomo",
    "full, AdaLomo, checkpointing",
    "LoRA + AdamW",
    "LoRA + AdamW, checkpointing",
    "LoRA + Adafactor, checkpointing",
    "QLoRA + AdamW, checkpointing",
    "QLoRA + Adafactor, checkpointing",
    "MeZO, full",
    "MeZO, LoRA",
    "MeZO, 4-bit with LoRA",
    "MeZO, offloaded",
)
"""What we would take, by accuracy first (docs/choosing.md): backpropagation wherever it fits, then MeZO.

Without those of all weights that take more than AdaLomo and learn less.
"""


def choice(found: Sequence[Row], gpu_memory: float, host_memory: float = HOST_MEMORY) -> Row | None:
    """The first of `BEST_FIRST` that fits, or None."""
    by_name = {row.name: row for row in found}
    return next((by_name[name] for name in BEST_FIRST if by_name[name].fits(gpu_memory, host_memory)), None)


def text(
    found: Sequence[Row], gpu_memory: float, seconds: Mapping[str, float], host_memory: float = HOST_MEMORY
) -> str:
    """The table, and the choice; `seconds` of a step by the name of a row, or none at all."""
    columns = ("weights", "gradients", "masters", "optimizer", "activations", "copies", "cache")
    lines = [f"| method | {' | '.join(columns)} | GB in all | fits {gpu_memory:g} GB | forwards a step |"]
    lines[0] += " s a step, counted | |" if seconds else " |"
    lines.append("|---" * (len(columns) + 5 + bool(seconds)) + "|")
    for row in found:
        cells = [f"{row.bytes[name] / GB:.2f}" if row.bytes.get(name) else "" for name in columns]
        total, fits = f"{row.total / GB:.2f}", "yes" if row.fits(gpu_memory, host_memory) else "no"
        time = [f"{seconds[row.name]:.2g}"] if seconds else []
        note = row.note if not row.host else f"and {row.host / GB:.2f} GB of the host's {host_memory:g}"
        lines.append(f"| {row.name} | {' | '.join([*cells, total, fits, f'{row.forwards:g}', *time, note])} |")
    taken = choice(found, gpu_memory, host_memory)
    lines += ["", f"We would take: {taken.name}" if taken else _nothing(found[-1], gpu_memory)]
    if taken is not None and taken.name.startswith("MeZO"):
        lines[-1] += " (no backpropagation fits)"
    return "\n".join(lines) + "\n"


def _nothing(offloaded: Row, gpu_memory: float) -> str:
    """What can be done where nothing fits; `offloaded` is what needs least of the card."""
    said = "Nothing that trains fits: take a smaller model or batch"
    needed = math.ceil(offloaded.host / GB + HOST_RESERVE)
    if offloaded.fits(gpu_memory, needed):
        said += f", or a host with {needed} GB of memory (--host-memory), for {offloaded.name}"
    return said


def _of_tiles(batch: Batch, patches: int) -> str:
    """What is said of fewer tokens than the pictures of a row may have.

    Args:
        patches: of a tile; the first tile of a picture keeps all of them, the others lose what is padding
            (`spatial_unpad`) or more than a limit (`anyres_max_N`).

    Raises:
        InputError: there is no room for one tile and the supervised tokens.
    """
    given, least = f"--tokens {batch.tokens}", patches + batch.supervised
    if batch.tokens < least:
        raise InputError(
            f"{given} is too few for --tiles {batch.tiles}: a tile is {patches} tokens, and --supervised "
            f"{batch.supervised} come on top; give --tokens {least} or more"
        )
    most = batch.tiles * patches
    if batch.tokens >= most + batch.supervised:
        return ""
    return (
        f"--tiles {batch.tiles} are up to {most:,} tokens by themselves, more than {given} leaves room for: right only "
        f"where unpadding or anyres_max_N makes them fewer, else give --tokens {most + batch.supervised} or more\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Memory and time of every method, counted, and what we would take.")
    parser.add_argument("--model", required=True, help=f"checkpoint folder, hub id, or one of {', '.join(SHAPES)}")
    parser.add_argument("--gpu-memory", type=float, required=True, metavar="GB", help="of the card, in 10^9 bytes")
    parser.add_argument("--host-memory", type=float, default=HOST_MEMORY, metavar="GB", help="default: %(default)g")
    parser.add_argument("--gpu", choices=CARDS, help="also the time of a step on this one, from its data sheet")
    parser.add_argument("--tokens", type=int, default=1500, help="positions of a row, images among them (%(default)d)")
    parser.add_argument("--batch", type=int, default=1, help="rows of a step (%(default)d)")
    parser.add_argument("--tiles", type=int, default=2, help="tiles of the pictures of a row (%(default)d)")
    parser.add_argument("--supervised", type=int, default=12, help="supervised positions of a row (%(default)d)")
    parser.add_argument("--mm_tunable_parts", default=LANGUAGE_MODEL, help="as for train.py (%(default)s)")
    parser.add_argument("--lora_r", type=int, default=LORA_RANK, help="as for train.py (%(default)d)")
    return parser


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    options = _parser().parse_args(argv)
    for name in ("gpu_memory", "host_memory", "tokens", "batch", "tiles", "supervised", "lora_r"):
        if not 0 < getattr(options, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} must be a number above 0")
    if options.model not in SHAPES and not Path(options.model).is_dir() and options.model.count("/") != 1:
        raise InputError(f"--model {options.model}: no such folder; give one, a hub id, or {', '.join(SHAPES)}")
    batch = Batch(options.batch, options.tokens, options.tiles, options.supervised)
    of = sizes(options.model)
    said = _of_tiles(batch, of.patches)
    found = rows(of, batch, parse_parts(options.mm_tunable_parts), options.lora_r)
    card = CARDS.get(options.gpu)
    seconds = {} if card is None else {row.name: row.seconds(of, batch, card) for row in found}
    memory, host = options.gpu_memory, options.host_memory
    sys.stdout.write(text(found, memory, seconds, host) + said)
    most = largest_offloaded(memory, host, batch) / 1e9
    sys.stdout.write(
        f"Offloaded, {memory:g} GB of the card and {host:g} GB of the host train a decoder of up to {most:.0f} billion "
        "weights in bfloat16 (of OPT's proportions)\n"
    )


if __name__ == "__main__":
    main()
