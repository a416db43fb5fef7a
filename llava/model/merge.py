"""An adapter or projector-only checkpoint and the model it was trained from, as one whole checkpoint.

    python -m llava.model.merge --adapter runs/mine --base MODEL --output merged

The result is in the base's dtype and needs neither PEFT nor the base. Exit codes: 2, wrong folders.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llava.errors import InputError, command
from llava.mm_utils import get_model_name_from_path
from llava.model.adapter_kinds import MERGED
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint_files import find_file, read_json
from llava.model.loading import adapter_file
from llava.utils import setup_logging

logger = logging.getLogger(__name__)


def merge(adapter: str, base: str, output: Path) -> None:
    """Write `base` with what `adapter` holds to the folder `output`.

    Raises:
        InputError: `output` is not empty, `adapter` is neither, or an adapter that does not become weights.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output} is not empty; choose another folder")
    _check_kind(adapter)
    tokenizer, model, _, _ = load_pretrained_model(
        adapter,
        base,
        get_model_name_from_path(adapter),
        device_map="cpu",
        torch_dtype="auto",
        attn_implementation="sdpa",
    )
    try:
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error.strerror})") from error
    logger.info("%s: %s on %s, %s", output, adapter, base, str(model.dtype).removeprefix("torch."))


def _check_kind(adapter: str) -> None:
    file = find_file(adapter, "adapter_config.json")
    if file is None:
        adapter_file(adapter)  # says what is missing
        return
    kind = read_json(file).get("peft_type")
    if kind not in MERGED:
        raise InputError(
            f"--adapter {adapter} is of kind {kind}, which cannot be merged into weights; allowed: {', '.join(MERGED)}"
        )


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Make one checkpoint of an adapter and its base.")
    parser.add_argument("--adapter", required=True, help="output folder of a LoRA or projector-only run")
    parser.add_argument("--base", required=True, help="model that it was trained from: folder or hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder of the result; new or empty")
    options = parser.parse_args(argv)
    setup_logging()
    merge(options.adapter, options.base, options.output)


if __name__ == "__main__":
    main()
