"""The training set: records are read at once, their images and tokens one sample at a time."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX
from llava.conversation import get_template
from llava.errors import InputError
from llava.mm_utils import image_processing
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.encoding import Encoded
from llava.samples.loading import Record, load_records
from llava.samples.media import Entry, dummy_entry, has_media, image_entry, open_image, processor_side
from llava.samples.preprocess import cut_length
from llava.samples.sample_maker import SampleMaker
from llava.samples.turns import ANSWER, naming, record_name, record_turns

logger = logging.getLogger(__name__)

WORDS_PER_IMAGE = 128


class LazySupervisedDataset(Dataset[dict[str, Any]]):
    """Samples of `--data_path`; an item has `input_ids`, `labels` (1-d long), `id` and, with a vision tower, `image`.

    `image` is a list of (pixels, (width, height), modality); a text-only sample carries one dummy.

    Args:
        data_path: what `llava.samples.loading.load_records` takes.
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
    def samples(self) -> SampleMaker:
        """How records become samples, and what they are refused for."""
        return SampleMaker(self.tokenizer, self.data_args)

    @property
    def lengths(self) -> list[int]:
        """Words in all turns, plus 128 if there is an image (`words_per_image` in `data_args`: so many per image)."""
        return [words + self._image_words(record) for words, record in self._words()]

    @property
    def modality_lengths(self) -> list[int]:
        """Words in all turns; negative for samples without image or video, unless `early_mix_text`."""
        mixed = bool(getattr(self.data_args, "early_mix_text", False))
        return [words if mixed or has_media(record) else -words for words, record in self._words()]

    @property
    def answers(self) -> list[str]:
        """What the model is to say in each record, all turns together."""
        return ["\n".join(t["value"] for t in record_turns(r) if t["from"] == ANSWER) for r in self.list_data_dict]

    def process_image(
        self, image_file: str, overwrite_image_aspect_ratio: str | None = None
    ) -> tuple[torch.Tensor, tuple[int, int], str]:
        """(pixels, (width, height), "image") of a file below `image_folder`."""
        image = open_image(image_file, getattr(self.data_args, "image_folder", None))
        return image_entry(image, self.data_args, overwrite_image_aspect_ratio)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, samples = self.list_data_dict[index], self.samples
        with naming(self._name(index)):
            media = samples.open(record)
            entries = samples.entries(media)
            encoded = samples.encode(record, media)
            samples.check_cut(encoded, entries)
        return self._item(record, index, encoded, entries)

    def _item(self, record: Record, index: int, encoded: Encoded, entries: list[Entry]) -> dict[str, Any]:
        limit = cut_length(self.tokenizer, bool(entries), self.samples.template)
        encoded = encoded if limit is None else encoded.cut(limit)
        labels = self.samples.labels(encoded)
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

    def _leave_out_bad_samples(self) -> None:
        """Try every record once, so that all processes skip the same ones and the length of the set is known."""
        good: list[int] = []
        for index, record in enumerate(self.list_data_dict):
            try:
                with naming(self._name(index)):
                    self.samples.examine(record)
                good.append(index)
            except InputError as error:
                self.skipped.append({"id": record.get("id", index), "reason": str(error)})
                logger.warning("skipped %s", error)
        if self.skipped and not good:
            raise InputError(f"all {len(self.skipped)} records are bad; the first: {self.skipped[0]['reason']}")
        logger.info("%d of %d records skipped", len(self.skipped), len(self.list_data_dict))
        self._numbers = good
        self.list_data_dict = [self.list_data_dict[index] for index in good]

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
