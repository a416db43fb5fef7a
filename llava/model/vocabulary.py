"""New tokens: added to the tokenizer, with rows for them in the embeddings. Embeddings only ever grow."""

from __future__ import annotations

import logging
from typing import Any

import torch

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.errors import InputError
from llava.model.checkpoint_files import read_tensors
from llava.model.loading import adapter_file

logger = logging.getLogger(__name__)


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
