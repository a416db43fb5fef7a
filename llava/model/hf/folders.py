"""A checkpoint folder of one format written in the other, tensor for tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from llava.errors import InputError
from llava.model.adapter_kinds import MERGED
from llava.model.checkpoint_files import find_file, read_json, weight_files
from llava.model.families import config_for, is_llava_config, model_class_for
from llava.model.hf.from_hf import RECORD, kept_layers, our_config, processor_settings, record_of
from llava.model.hf.names import EMBEDDINGS, TOWER, our_name, their_name
from llava.model.hf.processing import add_media_tokens, media_tokens, write_json, write_processors, write_tokenizer
from llava.model.hf.to_hf import check_expressible, their_config
from llava.model.hf.weights import Stored, check_complete, cut, grown, renamed, stored_weights, write_shards
from llava.model.loading import ADAPTER_FILES, settled_config
from llava.model.multimodal_encoder.tower_config import TowerSpec, describe_tower
from llava.model.vocabulary import load_tokenizer

logger = logging.getLogger(__name__)

_UNUSED = (f"{TOWER}head.", f"{TOWER}embeddings.position_ids")
"""Weights that some checkpoints hold and no model of either format reads."""
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert: a folder, or a hub id.

    Attributes:
        name: of the folder or id.
        values: contents of its config.json.
        weights: by their names in our format.
    """

    name: str
    values: Mapping[str, Any]
    weights: dict[str, Stored]

    @classmethod
    def open(cls, name: str, values: Mapping[str, Any]) -> Source:
        """Find the weights of a checkpoint.

        Raises:
            InputError: it is a part of a model, or has no weights that can be read.
        """
        for part in ("adapter_config.json", *ADAPTER_FILES):
            if find_file(name, part) is not None and (part == "adapter_config.json" or not weight_files(name)):
                raise InputError(f"--from {name} holds a part of a model ({part}). {_whole_one(name)}")
        files = weight_files(name)
        if not files:
            raise InputError(f"--from {name} has no weights (safetensors, or pytorch_model.bin)")
        weights = renamed(stored_weights(files), our_name)
        unused = [key for key in weights if key.startswith(_UNUSED) or key.endswith("rotary_emb.inv_freq")]
        for key in unused:
            del weights[key]
        if unused:
            logger.info("left out, as no model reads them: %d weights, such as %s", len(unused), unused[0])
        return cls(name, values, weights)

    @property
    def size(self) -> int:
        """Of the weights, in bytes."""
        return sum(weight.size for weight in self.weights.values())

    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            InputError: there is none that can be read.
        """
        try:
            return load_tokenizer(self.name)
        except InputError as error:
            raise InputError(f"--from {self.name}: its tokenizer cannot be loaded: {error}") from error

    @property
    def rows(self) -> int:
        """Of the embeddings.

        Raises:
            InputError: there are none.
        """
        if EMBEDDINGS[0] not in self.weights:
            raise InputError(f"--from {self.name}: the checkpoint lacks {EMBEDDINGS[0]}. Is it complete?")
        return self.weights[EMBEDDINGS[0]].shape[0]


def _whole_one(part: str) -> str:
    """What to do with a part of a model that is to be converted."""
    file = find_file(part, "adapter_config.json")
    kind = None if file is None else read_json(file).get("peft_type")
    if file is not None and kind not in MERGED:
        return f"An adapter of kind {kind} does not become weights, so it cannot; those that do: {', '.join(MERGED)}"
    merge = f"`python -m llava.model.merge --adapter {part} --base MODEL --output FOLDER`"
    return f"Make it a whole one, and convert that: {merge}"


class OursToTheirs:
    """A checkpoint of ours, to be written in Hugging Face's format.

    Args:
        images_only: convert it although videos would be merged in another way.

    Raises:
        InputError: it is no such checkpoint, or has settings that the other format cannot express.
    """

    def __init__(self, source: Source, images_only: bool) -> None:
        self.source = source
        self.config: Any = config_for(source.name)
        if not is_llava_config(self.config):
            raise InputError(f"--from {source.name}: its config.json names no mm_vision_tower: not a LLaVA checkpoint")
        self.config = settled_config(type(self.config), source.name, self.config, {})
        self.spec: TowerSpec = describe_tower(self.config.mm_vision_tower, self.config)
        check_expressible(self.config, self.spec, f"--from {source.name}", images_only)
        if not any(name.startswith(TOWER) for name in source.weights):
            raise InputError(
                f"--from {source.name}: the vision tower's weights are not in the checkpoint; load it with "
                "load_pretrained_model, save that with save_pretrained, and convert what is saved"
            )
        check_complete(source.weights, _shapes(model_class_for(self.config), self.config, source.weights), source.name)

    def write(self, folder: Path) -> None:
        """Everything into an empty folder."""
        tokenizer = self.source.tokenizer()
        template = tokenizer.chat_template
        added = add_media_tokens(tokenizer)
        tokens = media_tokens(tokenizer, self.source.rows)
        more = tokens.rows - self.source.rows
        if more:
            logger.info("the embeddings get %d rows more, for %s", more, " and ".join(added))
        dtype = getattr(self.config, "dtype", None) or self.source.weights[EMBEDDINGS[0]].dtype
        values = their_config(self.config, self.spec, tokens, str(dtype).removeprefix("torch."))
        write_processors(folder, self.config, self.spec, tokenizer)
        fresh = our_config(values, processor_settings(str(folder)), str(folder))
        record = record_of(self.source.values, fresh)
        values[RECORD] = record | {
            "rows": self.source.rows,
            "rows_here": tokens.rows,
            "added_tokens": added,
            "chat_template": template if isinstance(template, str) else None,
        }
        write_json(folder / "config.json", dict(sorted(values.items())))
        # Sampling is not to draw them either; greedy decoding does not in any case.
        never = list(range(self.source.rows, tokens.rows))
        write_json(folder / _GENERATION, _generation(self.source, self.config, never, []))
        weights = dict(self.source.weights)
        for name in EMBEDDINGS:
            if name in weights and more:
                weights[name] = grown(weights[name], tokens.rows)
        written = LlavaOnevisionConfig.from_dict(dict(values))
        check_complete(weights, _shapes(LlavaOnevisionForConditionalGeneration, written, weights), str(folder))
        write_shards(folder, renamed(weights, their_name))


class TheirsToOurs:
    """A checkpoint in Hugging Face's format, to be written as one of ours.

    Raises:
        InputError: it is none, or has settings that ours cannot have.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        values = our_config(source.values, processor_settings(source.name), f"--from {source.name}")
        self.record: Mapping[str, Any] = source.values.get(RECORD) or {}
        self.weights = _without_spare_layers(source)
        self.rows = source.rows
        if self.record and self.rows == self.record.get("rows_here"):
            self.rows = self.record.get("rows", self.rows)
        for name in EMBEDDINGS:
            if name in self.weights and self.rows < source.rows:
                self.weights[name] = cut(self.weights[name], self.rows)
        self.values = values | {"vocab_size": self.rows}
        self.config = _config_of(self.values, self.weights)
        shapes = _shapes(model_class_for(self.config), self.config, self.weights)
        check_complete(self.weights, shapes, source.name)

    def write(self, folder: Path) -> None:
        """Everything into an empty folder."""
        tokenizer = self.source.tokenizer()
        added = self.record.get("added_tokens", ())
        template = self.record.get("chat_template") if self.record else tokenizer.chat_template
        write_tokenizer(folder, tokenizer, added, template)
        write_json(folder / "config.json", dict(sorted(self.values.items())))
        never = list(range(self.rows, self.source.rows))
        write_json(folder / _GENERATION, _generation(self.source, self.config, [], never))
        write_shards(folder, self.weights)


def _config_of(values: Mapping[str, Any], weights: Mapping[str, Stored]) -> Any:
    """The config object of a config.json and weights of ours, with its tower described."""
    config = model_class_for(dict(values)).config_class.from_dict(dict(values))
    shapes = {name.removeprefix(TOWER): one.shape for name, one in weights.items() if name.startswith(TOWER)}
    describe_tower(config.mm_vision_tower, config, shapes).remember(config)
    return config


def _without_spare_layers(source: Source) -> dict[str, Stored]:
    """Their weights less the layers of the tower behind the one whose output is taken."""
    kept = kept_layers(source.values, source.name)
    prefix = f"{TOWER}encoder.layers."
    spare = [
        name
        for name in source.weights
        if name.startswith(prefix) and int(name.removeprefix(prefix).split(".")[0]) >= kept
    ]
    if spare:
        logger.info("left out: %d weights of layers of the tower whose output is not used", len(spare))
    return {name: weight for name, weight in source.weights.items() if name not in spare}


def _generation(source: Source, config: Any, never: list[int], allowed: list[int]) -> dict[str, Any]:
    """Contents of generation_config.json: the source's, or what follows from its config.

    Args:
        never, allowed: tokens that are not to be drawn, in addition and no longer.
    """
    file = find_file(source.name, _GENERATION)
    values = read_json(file) if file is not None else GenerationConfig.from_model_config(config).to_diff_dict()
    suppressed = [token for token in (values.pop("suppress_tokens", None) or []) if token not in allowed] + never
    return values | ({"suppress_tokens": suppressed} if suppressed else {})


def _shapes(
    model_class: Callable[[Any], Any], config: Any, weights: Mapping[str, Stored]
) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's weights by our names; a head that is tied to the embeddings counts where it is stored."""
    with torch.device("meta"):
        model = model_class(config)
    head = EMBEDDINGS[1]
    shapes = {our_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings and head not in weights:
        shapes.pop(head, None)
    return shapes
