"""An adapter or projector-only checkpoint and the model it was trained from, as one whole checkpoint.

    python -m llava.model.merge --adapter runs/mine --base MODEL --output merged

The result is in the base's dtype and needs neither PEFT nor the base. Of a run on a base in 4 or 8 bits, the base is
quantised as there, and what that left of its weights is merged, in the dtype of the run: a warning says how far the
logits of the result are from those of the model that was trained. Exit codes: 2, wrong folders.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from llava.errors import InputError, command_with
from llava.mezo.command_line import Parser
from llava.mezo.durable import follow_umask
from llava.mezo.new_folder import check_new, new_folder
from llava.mm_utils import get_model_name_from_path
from llava.model.adapter_kinds import MERGED
from llava.model.builder import load_pretrained_model
from llava.model.card import history_of, write_card
from llava.model.checkpoint_files import find_file, read_json
from llava.model.checkpoint_kind import looks_local
from llava.model.loading import ADAPTER_FILES
from llava.model.own_settings import read_config
from llava.model.quantised import SETTINGS, bits_of
from llava.model.quantised_scales import SCALES_FILE
from llava.utils import setup_logging

PROBE_TOKENS = 256
"""Of the text, drawn at random, that the logits of a merged model are compared on."""

logger = logging.getLogger(__name__)


def merge(adapter: str, base: str, output: Path) -> None:
    """Write `base` with what `adapter` holds to the folder `output`.

    Raises:
        InputError: `output` is not empty, `adapter` is neither, or an adapter that does not become weights.
    """
    check_new(output, "--output")
    _check_kind(adapter)
    bits = bits_of(read_config(adapter).get(SETTINGS))
    expected = None if bits == 16 else probe(_load(adapter, base, bits)[1])
    tokenizer, model = _load(adapter, base, bits, dequantise=bits != 16)
    if expected is not None:
        distance, others = apart(probe(model), expected)
        logger.warning(
            "%s was trained on its base in %d bits, whose weights are now ordinary ones: on %d random tokens the "
            "logits of the merged model are %.2g %% away from those of the trained one (of their norm), and the "
            "likeliest next token is another one for %.1f %%",
            adapter,
            bits,
            PROBE_TOKENS,
            100 * distance,
            100 * others,
        )
    with new_folder(output, "--output") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        follow_umask(*folder.glob("*.safetensors"))
        write_card(folder, base, *history_of(adapter))
    logger.info("%s: %s on %s, %s", output, adapter, base, str(model.dtype).removeprefix("torch."))


def _load(adapter: str, base: str, bits: int, **more: Any) -> tuple[Any, Any]:
    """Tokenizer and model, the adapter on its base in so many bits."""
    tokenizer, model, _, _ = load_pretrained_model(
        adapter,
        base,
        get_model_name_from_path(adapter),
        load_8bit=bits == 8,
        load_4bit=bits == 4,
        device_map="cpu",
        torch_dtype="auto",
        attn_implementation="sdpa",
        **more,
    )
    return tokenizer, model


@torch.no_grad()
def probe(model: Any) -> torch.Tensor:
    """Logits [PROBE_TOKENS, vocabulary], float32, of a text drawn at random, the same each time."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, PROBE_TOKENS), generator=generator)
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits[0].float()


def apart(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """How far logits [tokens, vocabulary] are from others.

    Returns:
        The norm of the difference as a share of the others' norm, and the share of tokens after which another one is
        the likeliest.
    """
    distance = float((found - expected).norm() / expected.norm())
    return distance, float((found.argmax(1) != expected.argmax(1)).float().mean())


def _check_kind(adapter: str) -> None:
    file = find_file(adapter, "adapter_config.json")
    if file is not None:
        kind = read_json(file).get("peft_type")
        if kind not in MERGED:
            raise InputError(
                f"--adapter {adapter} is of kind {kind}, which cannot be merged into weights; allowed: "
                f"{', '.join(MERGED)}"
            )
        return
    if not Path(adapter).exists() and looks_local(adapter):
        raise InputError(f"--adapter {adapter}: no such folder; give the output folder of a run, or a hub id")
    if not Path(adapter).is_file() and not any(find_file(adapter, name) for name in (SCALES_FILE, *ADAPTER_FILES)):
        raise InputError(
            f"--adapter {adapter} holds no adapter: there is none of adapter_config.json, {SCALES_FILE} and "
            f"{', '.join(ADAPTER_FILES)}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Make one checkpoint of an adapter and its base.")
    parser.add_argument(
        "--adapter", required=True, help="output folder of a run that saves an adapter, a projector or scales"
    )
    parser.add_argument("--base", required=True, help="model that it was trained from: folder or hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder of the result; new or empty")
    return parser


@command_with(_parser, **{"model-path": "adapter", "model-base": "base"})
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    options = _parser().parse_args(argv)
    setup_logging()
    merge(options.adapter, options.base, options.output)


if __name__ == "__main__":
    main()
