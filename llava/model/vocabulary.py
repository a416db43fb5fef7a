"""New tokens: added to the tokenizer, with rows for them in the embeddings. Embeddings only ever grow."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.errors import InputError
from llava.model.checkpoint_files import read_tensors, usable
from llava.model.loading import adapter_file

logger = logging.getLogger(__name__)


VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer has one."""
_COPY = "copy its files from the model that this one was made from"


def load_tokenizer(name_or_path: str, **arguments: Any) -> Any:
    """The tokenizer of a model folder or hub id.

    Args:
        arguments: of `AutoTokenizer.from_pretrained`.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and not any((folder / file).is_file() for file in VOCABULARIES):
        raise InputError(f"{name_or_path}: has no tokenizer ({', '.join(VOCABULARIES)}); {_COPY}")
    with usable(f"{name_or_path}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **arguments)
    whole, *parts = _vocabulary_files(tokenizer)
    if folder.is_dir():
        there = {file for file in (whole, *parts) if (folder / file).is_file()}
        if whole not in there and not (parts and there >= set(parts)):  # the library goes on with an empty vocabulary
            other = f", or {' and '.join(parts)}" if parts else ""
            raise InputError(f"{name_or_path}: has no tokenizer: {whole}{other} is missing; {_COPY}")
    return tokenizer


def _vocabulary_files(tokenizer: Any) -> list[str]:
    """The file that holds everything, then those that older versions have in its place."""
    names = dict(tokenizer.vocab_files_names)
    whole = names.pop("tokenizer_file", None)
    return [*([whole] if whole else []), *names.values()]


def check_fits(tokenizer: Any, rows: int, name: str) -> None:
    """`InputError` for a tokenizer with more tokens than the model has rows of embeddings: it is another model's."""
    if len(tokenizer) > rows:
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, but the embeddings {rows} rows (vocab_size): they are "
            "of two models; copy the tokenizer files of the model that the weights come from"
        )


def grow_embeddings(model: Any, tokenizer: Any) -> None:
    """Make sure that every token has a row; embeddings with rows to spare (padded ones) stay as they are."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def image_tokens(settings: Any) -> list[str]:
    """The marks that a config or arguments ask for (`mm_use_im_patch_token`, `mm_use_im_start_end`)."""
    tokens = []
    if getattr(settings, "mm_use_im_patch_token", True):
        tokens.append(DEFAULT_IMAGE_PATCH_TOKEN)
    if getattr(settings, "mm_use_im_start_end", False):
        tokens += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    return tokens


def add_image_tokens(model: Any, model_args: Any, tokenizer: Any) -> None:
    """Add the image marks for training; rows of a new start and end mark begin as the mean of the old rows.

    With `tune_mm_mlp_adapter` the input embeddings are trained and the output embeddings are not. Rows for start and
    end in `pretrain_mm_mlp_adapter` are taken over.
    """
    if getattr(model_args, "mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
        grow_embeddings(model, tokenizer)
    if not getattr(model_args, "mm_use_im_start_end", False):
        return
    known = len(tokenizer)
    added = tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    grow_embeddings(model, tokenizer)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for table in tables:
            if added:
                table[known : known + added] = table[:known].float().mean(0).to(table)
    if getattr(model_args, "tune_mm_mlp_adapter", False):
        model.get_output_embeddings().requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
    if added and getattr(model_args, "pretrain_mm_mlp_adapter", None) is not None:
        _take_rows(tables[0], model_args.pretrain_mm_mlp_adapter, known, added)


def _take_rows(table: torch.Tensor, adapter: str, known: int, added: int) -> None:
    """Rows of the marks from an adapter file: it holds them alone, or a whole table in which they come last."""
    path = adapter_file(adapter)
    found = read_tensors(path, lambda name: name.endswith("embed_tokens.weight"))
    for name, rows in found.items():
        if rows.shape[1] != table.shape[1] or len(rows) < added:
            raise InputError(f"{path}: {name} is {list(rows.shape)}, but {added} rows of {table.shape[1]} are needed.")
        source = rows if len(rows) == added else rows[known : known + added]
        if len(source) != added:
            raise InputError(f"{path}: {name} has {len(rows)} rows; allowed: {added}, or {known + added} and more.")
        with torch.no_grad():
            table[known : known + added] = source.to(table)
