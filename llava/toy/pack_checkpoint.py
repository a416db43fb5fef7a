"""From the folder of the pre-training run to the small checkpoint that playground/ carries.

    python -m llava.toy.pack_checkpoint --run RUN --output playground/tiny-llava-onevision

keeps config, tokenizer and weights, stores the weights in bfloat16 (half the size; the config says float32, so they
are used in float32 again) and drops the paths of the machine it was trained on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llava.errors import InputError, command
from llava.mezo.durable import follow_umask

TOWER_NAME = "tiny-siglip-patch7-56"  # the tower's weights and config are inside the checkpoint
_COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_OF_THE_RUN = ("_name_or_path", "mm_vision_tower_lr", "mm_projector_lr")


def pack(run: Path, output: Path) -> int:
    """Write the checkpoint to `output`; returns its size in bytes.

    Raises:
        InputError: `run` is not the folder of a finished run.
    """
    weights, config_file = run / "model.safetensors", run / "config.json"
    if not weights.is_file() or not config_file.is_file():
        raise InputError(f"--run {run}: must hold model.safetensors and config.json of a finished run")
    output.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    follow_umask(output / "model.safetensors")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    for name in _OF_THE_RUN:
        config.pop(name, None)
    config |= {"mm_vision_tower": TOWER_NAME, "torch_dtype": "float32"}
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in _COPIED:
        if (run / name).exists():
            shutil.copyfile(run / name, output / name)
    for file in output.iterdir():
        file.chmod(0o644)
    return sum(file.stat().st_size for file in output.iterdir())


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Pack a pre-trained tiny checkpoint.")
    parser.add_argument("--run", type=Path, required=True, help="output folder of the training run")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    size = pack(arguments.run, arguments.output)
    sys.stdout.write(f"{arguments.output}: {size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
