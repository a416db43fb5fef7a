"""What all LLaVA models share, whatever their language model: vision modules, splicing, loss and generation.

`LlavaMetaModel` (in `vision_modules`) goes in front of a language model without head and holds tower, projector and
newline; `LlavaMetaForCausalLM` goes in front of the language model with head. See `language_model/` for the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.model import loading
from llava.model.attention import causal_without_mask
from llava.model.checkpoint_files import usable
from llava.model.chunked_loss import has_plain_head, mean_cross_entropy
from llava.model.decoder_layers import passed_over
from llava.model.feature_maps import unpad_image
from llava.model.layout import Geometry
from llava.model.merge_plan import MergePlan
from llava.model.merging import merge_entry
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.quantised import keep_layout
from llava.model.splicing import SplicedBatch, cut_rows, modality_of_each, pad_rows, skip_positions, splice_rows
from llava.model.vision_modules import LlavaMetaModel
from llava.model.vocabulary import add_image_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    class _Base(PreTrainedModel):
        config_class: Any
        generate: Any
        lm_head: Any
        model: Any
else:
    _Base = object  # a language model with head comes behind the mixin

__all__ = ["LlavaMetaForCausalLM", "LlavaMetaModel", "unpad_image"]

Images = torch.Tensor | Sequence[torch.Tensor]


class PromptTooLong(InputError):
    """A prompt that the model cannot take whole; `row` is its number in the batch."""

    def __init__(self, row: int, length: int, most: int) -> None:
        super().__init__(f"the prompt has {length} tokens with its images, and the model takes at most {most}")
        self.row = row


class FeatureSource(Protocol):
    """Gives features of images."""

    projected: bool
    """Whether they have been through the projector."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Of pixels [n, 3, S, S]."""


class LlavaMetaForCausalLM(_Base):
    """Adds images to the `forward` and `generate` of a causal language model whose `model` is a `LlavaMetaModel`."""

    # The loss is a mean over the tokens of one batch; the Trainer then averages over accumulated batches.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a LLaVA checkpoint, tower weights included, or a plain checkpoint of the language model.

        As in the library, and: no weight stays silently uninitialised, the tower's own weights are fetched only when
        the checkpoint holds none. `vision_from_elsewhere=True` allows a projector that is not in the checkpoint.

        Raises:
            InputError: for a damaged checkpoint, for weights that are missing, of another shape or without a place in
                the model, or a tower whose architecture cannot be found out.
        """
        want_info = kwargs.pop("output_loading_info", False)
        elsewhere = kwargs.pop("vision_from_elsewhere", False)
        config = kwargs.pop("config", None)
        if pretrained_model_name_or_path is not None:
            config = loading.settled_config(cls.config_class, pretrained_model_name_or_path, config, kwargs)
        kwargs["key_mapping"] = {**loading.READ_AS, **(kwargs.get("key_mapping") or {})}
        kwargs["ignore_mismatched_sizes"] = True  # they are refused by name below
        with usable(str(pretrained_model_name_or_path)):
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, config=config, output_loading_info=True, **kwargs
            )
        model, info = loaded
        loading.forget_renaming(model)
        keep_layout(model)
        name = str(pretrained_model_name_or_path or model.config.name_or_path)
        loading.check_loaded(model, info, name, projector_needed=not elsewhere)
        return (model, info) if want_info else model

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> VisionTower | None:
        return self.get_model().get_vision_tower()

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Add the image marks that the arguments ask for to the tokenizer, and rows for them to the embeddings."""
        add_image_tokens(self, model_args, tokenizer)

    feature_source: FeatureSource | None = None
    """What is asked for features of images in place of the tower, as a cache of a frozen one is."""

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels [n, 3, S, S] to features [n, patches, hidden]."""
        source: Any = self.feature_source or self.get_vision_tower()
        features = source(images)
        return features if self.feature_source and self.feature_source.projected else self.project(features)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """What the tower gives, [n, patches, width], to features [n, patches, hidden]."""
        projector = self.get_model().mm_projector
        weight = next(projector.parameters(), None)
        return projector(features if weight is None else features.to(device=weight.device, dtype=weight.dtype))

    def image_features(
        self, images: Images, image_sizes: Sequence[Any] | None, modalities: Sequence[str] | str | None, rows: int = 1
    ) -> list[torch.Tensor]:
        """Visual tokens [tokens, hidden] of each image of `rows` rows; see `prepare_inputs_labels_for_multimodal`."""
        if isinstance(images, torch.Tensor) and images.ndim == 4:
            return list(self.encode_images(images))
        entries = [image[None] if image.ndim == 3 else image for image in images]
        kinds = modality_of_each(modalities, len(entries), rows)
        sizes = [None] * len(entries) if image_sizes is None else list(image_sizes)
        if len(sizes) != len(entries):
            raise InputError(f"image_sizes has {len(sizes)} entries for {len(entries)} images: give one for each.")
        encoded = self.encode_images(torch.cat(entries)).split([len(entry) for entry in entries])
        tower: Any = self.get_vision_tower()
        plan, tile = MergePlan.from_config(self.config), tower.image_size
        newline, faster = self._learned_tokens()
        return [
            merge_entry(features, plan, size, tile, kind, newline, faster)
            for features, size, kind in zip(encoded, sizes, kinds, strict=True)
        ]

    def _learned_tokens(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The newline and the faster token, as far as the model has them."""
        model = self.get_model()
        return getattr(model, "image_newline", None), getattr(model, "faster_token", None)

    @cached_property
    def geometry(self) -> Geometry:
        """How ids and images become a sequence, for `layout.py`."""
        tower = self.get_vision_tower()
        embeddings: Any = self.get_input_embeddings()
        return Geometry(
            plan=MergePlan.from_config(self.config),
            patches=0 if tower is None else tower.num_patches,
            tile_size=0 if tower is None else tower.image_size,
            limit=getattr(self.config, "tokenizer_model_max_length", None),
            vocabulary=embeddings.num_embeddings,
        )

    def merged_tokens(self, features: torch.Tensor, size: Sequence[int] | None, kind: str) -> torch.Tensor:
        """Tokens [tokens, hidden] of an image whose features [tiles, patches, hidden] must be merged beforehand.

        Learned tokens, which a layout puts in, are zeros.
        """
        nothing = features.new_zeros(features.shape[-1])
        return merge_entry(features, self.geometry.plan, size, self.geometry.tile_size, kind, nothing, nothing)

    def laid_out_states(self, tensors: Mapping[str, torch.Tensor], begun: int = 0) -> torch.Tensor:
        """Last hidden states [n, hidden] at the supervised positions of a batch by its `Layout`.

        Args:
            tensors: those of the layout and, of the images that it shows, "vectors" [n, hidden], "tower_features"
                [tiles, patches, width] or "images" [tiles, 3, S, S]; none of them if it shows none.
            begun: after so many layers, which are left out, it goes on from what `laid_out_beginning` gave, "states".
        """
        model = self.get_model()
        embeddings = tensors["states"] if begun else self._put_together(tensors)
        with causal_without_mask(self.config), passed_over(model.layers[:begun]):
            states = model(inputs_embeds=embeddings, use_cache=False)[0]
        return states.flatten(0, 1).index_select(0, tensors["positions"])

    def laid_out_beginning(self, tensors: Mapping[str, torch.Tensor], layers: int) -> torch.Tensor:
        """Hidden states [rows, length, hidden] of a batch after so many layers, the first ones; `laid_out_states`."""
        model = self.get_model()
        with causal_without_mask(self.config), passed_over([*model.layers[layers:], model.norm]):
            states: torch.Tensor = model(inputs_embeds=self._put_together(tensors), use_cache=False)[0]
        return states

    def _put_together(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings [rows, length, hidden]."""
        words = self.get_input_embeddings()(tensors["words"])
        zeros = torch.zeros_like(words[0])
        learned = [zeros if token is None else token.to(words) for token in self._learned_tokens()]
        vectors = torch.cat([words, *self._vectors(tensors), torch.stack([*learned, zeros])])
        source = tensors["source"]
        return vectors.index_select(0, source.flatten()).view(*source.shape, -1)

    def _vectors(self, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        if "vectors" in tensors:
            return [tensors["vectors"]]
        if "images" in tensors:
            return [self.encode_images(tensors["images"]).flatten(0, 1)]
        if "tower_features" in tensors:
            return [self.project(tensors["tower_features"]).flatten(0, 1)]
        return []

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        images: Images | None,
        modalities: Sequence[str] | str | None = None,
        image_sizes: Sequence[Any] | None = None,
    ) -> tuple[Any, ...]:
        """Replace `<image>` marks by visual tokens.

        Args:
            input_ids: [rows, length], -200 for a mark.
            position_ids, attention_mask, labels: [rows, length]; what is None comes back as None.
            past_key_values: handed through.
            images: a list of pixels, one entry [3, S, S] or [tiles, 3, S, S] per image, or those stacked; a stacked
                [n, 3, S, S] is used as it is, without newlines.
            modalities: "image", "video" or "text" (a dummy) of each entry; None or one string holds for all, and so
                does `["image"]` in a batch of one row.
            image_sizes: (width, height) of each original image.

        Returns:
            (input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels): the inputs and no
            embeddings when there is nothing to do (no tower, no images, one column), else embeddings and no ids.

        Raises:
            InputError: when images and marks do not match.
        """
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        features = self.image_features(images, image_sizes, modalities, len(input_ids))
        side = getattr(self.config, "tokenizer_padding_side", None) or "right"
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        batch = self._splice(input_ids, attention_mask, labels, features, side, limit)
        new_positions = None if position_ids is None else batch.position_ids
        if self.training and getattr(self.config, "use_pos_skipping", False):
            new_positions = skip_positions(batch, self.config.pos_skipping_range)
        new_mask = None if attention_mask is None else batch.mask.to(attention_mask.dtype)
        return None, new_positions, new_mask, past_key_values, batch.embeds, None if labels is None else batch.labels

    def _splice(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        features: Sequence[torch.Tensor],
        padding_side: str,
        limit: int | None = None,
    ) -> SplicedBatch:
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        targets = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        rows = [ids[kept] for ids, kept in zip(input_ids, keep, strict=True)]
        row_labels = [target[kept] for target, kept in zip(targets, keep, strict=True)]
        embeds, row_labels = splice_rows(rows, row_labels, features, self.get_input_embeddings())
        embeds, row_labels = cut_rows(embeds, row_labels, limit)
        return pad_rows(embeds, row_labels, padding_side)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Any] | None = None,
        modalities: Sequence[str] | str | None = None,
        dpo_forward: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        loss_alone: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The language model's forward, with images; see `prepare_inputs_labels_for_multimodal`.

        Args:
            logits_to_keep: logits of so many last positions alone (0: of all), as the library's generate asks for,
                or of the positions given.
            loss_alone: the loss is enough. Logits are made of supervised positions alone, and a chunk of the vocabulary
                at a time where the head allows it; the output has none of them then.

        Returns:
            The language model's output; its `loss` is the mean cross entropy over the labels that are not -100, in
            float32, each position predicting the next. With `dpo_forward`: (logits, labels after splicing).
        """
        if inputs_embeds is None:
            ids: Any = input_ids
            prepared = self.prepare_inputs_labels_for_multimodal(
                ids, position_ids, attention_mask, past_key_values, labels, images, modalities, image_sizes
            )
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = prepared
        if input_ids is not None and inputs_embeds is None and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
            raise InputError("the text has <image> marks, but no images were given or the model has no vision tower.")
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            **kwargs,
        }
        if loss_alone and labels is not None:
            following = functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
            if has_plain_head(self.lm_head):
                return self._loss_alone(following, given)
            logits_to_keep = (following != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
            given["shift_labels"] = following[:, logits_to_keep]
        outputs = super().forward(labels=None if dpo_forward else labels, logits_to_keep=logits_to_keep, **given)
        return (outputs[0], labels) if dpo_forward else outputs

    def _loss_alone(self, following: torch.Tensor, given: Mapping[str, Any]) -> CausalLMOutputWithPast:
        """The mean cross entropy of the next tokens [rows, length]; no logits of them all are made."""
        chosen = following != IGNORE_INDEX
        states = self.model(**given)[0][chosen]
        return CausalLMOutputWithPast(loss=mean_cross_entropy(states, self.lm_head.weight, following[chosen]))

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Any] | None = None,
        modalities: Sequence[str] | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The library's generate, with images. Rows are padded on the left, whatever side `inputs` are padded on.

        A prompt is never cut, whatever length the model was trained with.

        Args:
            inputs: [rows, length] ids, -200 for a mark. Without `attention_mask`, pad tokens at either end of a
                row count as padding.
            kwargs: as for the library.

        Returns:
            The new tokens alone, [rows, new tokens], or what the library returns otherwise.

        Raises:
            PromptTooLong: a prompt has more tokens than the language model has positions.
            InputError: images and marks do not match.
        """
        batch, rest = self.prompt_batch(inputs, images, image_sizes, modalities, **kwargs)
        return self.generate_from(batch.embeds, batch.mask, **rest)

    def generate_from(self, embeds: torch.Tensor, mask: torch.Tensor, **kwargs: Any) -> Any:
        """The library's generate, of prompts [rows, length, hidden] and their mask; else as `generate`."""
        return super().generate(inputs_embeds=embeds, attention_mask=mask.long(), **kwargs)

    def prompt_batch(
        self,
        inputs: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Any] | None = None,
        modalities: Sequence[str] | str | None = None,
        tokens_in_front: int = 0,
        **kwargs: Any,
    ) -> tuple[SplicedBatch, dict[str, Any]]:
        """The prompts of `generate` with their images, and what of its arguments is the library's.

        Args:
            tokens_in_front: so many positions are taken already.
        """
        if kwargs.pop("inputs_embeds", None) is not None:
            raise InputError("generate takes token ids (inputs), not inputs_embeds.")
        input_ids = kwargs.pop("input_ids", inputs)
        kwargs.pop("position_ids", None)
        mask = kwargs.pop("attention_mask", None)
        if mask is None:
            pad = kwargs.get("pad_token_id", self.generation_config.pad_token_id)
            mask = _mask_of_padding(input_ids, self.config.pad_token_id if pad is None else pad)
        if images is None and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
            raise InputError("the prompt has <image> marks, but no images were given.")
        if images is not None and self.get_vision_tower() is None:
            raise InputError(
                "images were given, but the model has no vision tower: its config names no mm_vision_tower."
            )
        features = [] if images is None else self.image_features(images, image_sizes, modalities, len(input_ids))
        batch = self._splice(input_ids, mask, None, features, "left")
        lengths, most = (batch.mask.sum(1) + tokens_in_front).tolist(), self.config.max_position_embeddings
        if max(lengths) > most:
            raise PromptTooLong(lengths.index(max(lengths)), max(lengths), most)
        return batch, kwargs


def _mask_of_padding(input_ids: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """False for pad tokens before the first and behind the last other token of a row; batches of one have none."""
    if pad_token_id is None or len(input_ids) == 1:
        return torch.ones_like(input_ids, dtype=torch.bool)
    text = (input_ids != pad_token_id).long()
    return (text.cumsum(1) > 0) & (text.flip(1).cumsum(1).flip(1) > 0)
