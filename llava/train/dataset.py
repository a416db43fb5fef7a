"""The training set: records are read at once, their images and tokens one sample at a time."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils.data import Dataset

from llava import conversation as conversation_lib
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, get_template
from llava.data.loading import Record, load_records
from llava.errors import InputError
from llava.mm_utils import image_processing
from llava.train.chat_labels import template_system_text
from llava.train.collator import DataCollatorForSupervisedDataset
from llava.train.encoding import Encoded
from llava.train.media import (
    Entry,
    Media,
    dummy_entry,
    has_media,
    image_entry,
    media_entries,
    open_image,
    open_media,
    processor_side,
)
from llava.train.preprocess import cut_length, encode
from llava.train.turns import (
    Turn,
    count_image_marks,
    naming,
    place_image_marks,
    record_name,
    record_turns,
    split_system,
)
from llava.video import Video

logger = logging.getLogger(__name__)

WORDS_PER_IMAGE = 128


class LazySupervisedDataset(Dataset[dict[str, Any]]):
    """Samples of `--data_path`; an item has `input_ids`, `labels` (1-d long), `id` and, with a vision tower, `image`.

    `image` is a list of (pixels, (width, height), modality); a text-only sample carries one dummy.

    Args:
        data_path: what `llava.data.loading.load_records` takes.
        tokenizer: left as it is.
        data_args: the flags of `DataArguments`, and `image_processor`, `is_multimodal`, `version` (template name;
            without it `llava.conversation.default_conversation` decides), `mm_use_im_start_end`, `seed`. Missing
            ones take their defaults. `count_image_tokens`, a function of an entry's three parts, makes the check
            against `model_max_length` count the features of images. `dataset_paths` is stored in it.

    Raises:
        InputError: wrong files or records, here or when an item is fetched. With `skip_bad_samples` every record is
            tried once at the start; those that fail are left out and listed in `skipped` as `{"id", "reason"}`.
    """

    def __init__(self, data_path: str, tokenizer: Any, data_args: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.skipped: list[dict[str, Any]] = []
        self.list_data_dict, data_args.dataset_paths = load_records(data_path, seed=getattr(data_args, "seed", 0) or 0)
        self._numbers = list(range(len(self.list_data_dict)))
        get_template(getattr(data_args, "version", None) or "default")  # unknown names are refused before any work
        if self._multimodal:
            image_processing(getattr(data_args, "image_aspect_ratio", None))
        if getattr(data_args, "skip_bad_samples", False):
            self._leave_out_bad_samples()
        else:
            for index, record in enumerate(self.list_data_dict):
                with naming(self._name(index)):
                    record_turns(record)

    def __len__(self) -> int:
        return len(self.list_data_dict)

    @property
    def lengths(self) -> list[int]:
        """Words in all turns, plus 128 if there is an image (`words_per_image` in `data_args`: so many per image)."""
        return [words + self._image_words(record) for words, record in self._words()]

    @property
    def modality_lengths(self) -> list[int]:
        """Words in all turns; negative for samples without image or video, unless `early_mix_text`."""
        mixed = bool(getattr(self.data_args, "early_mix_text", False))
        return [words if mixed or has_media(record) else -words for words, record in self._words()]

    def process_image(
        self, image_file: str, overwrite_image_aspect_ratio: str | None = None
    ) -> tuple[torch.Tensor, tuple[int, int], str]:
        """(pixels, (width, height), "image") of a file below `image_folder`."""
        image = open_image(image_file, getattr(self.data_args, "image_folder", None))
        return image_entry(image, self.data_args, overwrite_image_aspect_ratio)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.list_data_dict[index]
        with naming(self._name(index)):
            media = self._open(record)
            entries = media_entries(media, self.data_args) if media else []
            encoded = self._encode(record, media)
            self._check_cut(encoded, entries)
        return self._item(record, index, encoded, entries)

    def _item(self, record: Record, index: int, encoded: Encoded, entries: list[Entry]) -> dict[str, Any]:
        limit = cut_length(self.tokenizer, bool(entries), self._template)
        encoded = encoded if limit is None else encoded.cut(limit)
        labels = self._labels(encoded)
        if all(label == IGNORE_INDEX for label in labels):
            logger.warning("%s has no supervised token", self._name(index))
        item: dict[str, Any] = {
            "input_ids": torch.tensor(encoded.input_ids, dtype=torch.long),
            "labels": torch.tensor(labels, dtype=torch.long),
            "id": record.get("id", self._numbers[index]),
        }
        if entries or self._multimodal:
            item["image"] = entries or [dummy_entry(processor_side(self.data_args.image_processor))]
        return item

    def _open(self, record: Record) -> Media:
        if has_media(record) and getattr(self.data_args, "image_processor", None) is None:
            raise InputError("the record has an image or a video, but there is no vision tower; set --vision_tower")
        return open_media(record, self.data_args)

    def _encode(self, record: Record, media: Media) -> Encoded:
        turns = record_turns(record)
        template = self._template
        if media:
            _check_marks(count_image_marks(turns), len(media))
            if media.video is not None and getattr(self.data_args, "add_time_instruction", False):
                turns = _with_time_instruction(turns, media.video)
            turns = place_image_marks(turns, bool(getattr(self.data_args, "mm_use_im_start_end", False)))
        use_own = getattr(self.data_args, "use_template_system_prompt", False)
        system = template_system_text(template) if use_own else None
        encoded = encode(turns, self.tokenizer, bool(media), template, system)
        kept = encoded.input_ids.count(IMAGE_TOKEN_INDEX)
        if kept > len(media):
            _check_marks(kept, len(media))
        elif kept < len(media):
            logger.warning("the conversation template shows only the first %d of %d images", kept, len(media))
        return encoded

    def _check_cut(self, encoded: Encoded, entries: list[Entry]) -> None:
        """Refuse a sample whose answers are all cut off by the model after splicing.

        Without `count_image_tokens` only what the collator cuts is known, and any label that it leaves will do.
        """
        count = getattr(self.data_args, "count_image_tokens", None)
        labels = self._labels(encoded) if count is None else encoded.answer_labels
        first = next((k for k, label in enumerate(labels) if label != IGNORE_INDEX), None)
        if first is None:
            return
        place = first
        if count is not None:
            before = encoded.input_ids[:first].count(IMAGE_TOKEN_INDEX)
            place += sum(count(*entry) - 1 for entry in entries[:before])
        if place >= self.tokenizer.model_max_length:
            raise InputError(
                f"its answer begins at token {place + 1}, so --model_max_length {self.tokenizer.model_max_length} cuts "
                f"off all supervised tokens; raise --model_max_length or use fewer image tiles"
            )

    def _leave_out_bad_samples(self) -> None:
        """Try every record once, so that all processes skip the same ones and the length of the set is known."""
        good: list[int] = []
        for index, record in enumerate(self.list_data_dict):
            try:
                self._try(index)
                good.append(index)
            except InputError as error:
                self.skipped.append({"id": record.get("id", index), "reason": str(error)})
                logger.warning("skipped %s", error)
        if self.skipped and not good:
            raise InputError(f"all {len(self.skipped)} records are bad; the first: {self.skipped[0]['reason']}")
        logger.info("%d of %d records skipped", len(self.skipped), len(self.list_data_dict))
        self._numbers = good
        self.list_data_dict = [self.list_data_dict[index] for index in good]

    def _try(self, index: int) -> None:
        record = self.list_data_dict[index]
        with naming(self._name(index)):
            media = self._open(record)
            encoded = self._encode(record, media)
            needs_pixels = media and getattr(self.data_args, "count_image_tokens", None) is not None
            self._check_cut(encoded, media_entries(media, self.data_args) if needs_pixels else [])
            if all(label == IGNORE_INDEX for label in self._labels(encoded)):
                raise InputError("it has no supervised token")

    def _labels(self, encoded: Encoded) -> list[int]:
        answers_only = getattr(self.data_args, "train_on_answers_only", False)
        return encoded.answer_labels if answers_only else encoded.labels

    @property
    def _template(self) -> Conversation:
        name = getattr(self.data_args, "version", None)
        return get_template(name) if name else conversation_lib.default_conversation

    @property
    def _multimodal(self) -> bool:
        has_processor = getattr(self.data_args, "image_processor", None) is not None
        return has_processor and bool(getattr(self.data_args, "is_multimodal", True))

    def _name(self, index: int) -> str:
        return record_name(self.list_data_dict[index], self._numbers[index])

    def _words(self) -> list[tuple[int, Record]]:
        return [(sum(len(t["value"].split()) for t in record_turns(r)), r) for r in self.list_data_dict]

    def _image_words(self, record: Record) -> int:
        images = record.get("image")
        if images is None:
            return 0
        per_image = getattr(self.data_args, "words_per_image", None)
        if per_image is None:
            return WORDS_PER_IMAGE
        return per_image * (len(images) if isinstance(images, list) else 1)


def _check_marks(marks: int, media: int) -> None:
    if marks != media:
        raise InputError(
            f"{marks} {DEFAULT_IMAGE_TOKEN} marks in the turns, but {media} images or videos; each needs one mark"
        )


def _with_time_instruction(turns: list[Turn], video: Video) -> list[Turn]:
    """New turns; the first human one tells when the frames of the video were taken."""
    first = split_system(turns)[1][0]
    text = first["value"].replace(DEFAULT_IMAGE_TOKEN, "")
    sentence = (
        f"The video lasts for {video.seconds:.2f} seconds, and {len(video.frames)} frames are uniformly sampled "
        f"from it. These frames are located at {video.times_text}.Please answer the following questions related to "
        "this video."
    )
    timed = first | {"value": f"{DEFAULT_IMAGE_TOKEN}\n{sentence}\n{text}"}
    return [timed if turn is first else turn for turn in turns]


def make_supervised_data_module(tokenizer: Any, data_args: Any) -> dict[str, Any]:
    """`train_dataset`, `eval_dataset` (None) and `data_collator` for the Trainer. No records are an `InputError`."""
    dataset = LazySupervisedDataset(data_args.data_path, tokenizer, data_args)
    if len(dataset) == 0:
        raise InputError(f"--data_path {data_args.data_path} holds no records to train on")
    return {
        "train_dataset": dataset,
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }
