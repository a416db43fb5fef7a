"""The training set: records are read at once, their images and tokens one sample at a time."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX
from llava.errors import InputError, naming, short
from llava.mm_utils import image_processing
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.encoding import Encoded
from llava.samples.loading import JsonRecord, Parts, load_parts
from llava.samples.media import Entry, dummy_entry, image_entry, open_image, processor_side
from llava.samples.preprocess import cut_length
from llava.samples.record import Record, read_record
from llava.samples.sample_maker import SampleMaker
from llava.samples.settings import SampleSettings

logger = logging.getLogger(__name__)

WORDS_PER_IMAGE = 128


class LazySupervisedDataset(Dataset[dict[str, Any]]):
    """Samples of `--data_path`; an item has `input_ids`, `labels` (1-d long), `id` and, with a vision tower, `image`.

    `image` is a list of (pixels, (width, height), modality); a text-only sample carries one dummy.

    Args:
        data_path: what `llava.samples.loading.load_parts` takes.
        tokenizer: left as it is.
        data_args: what `SampleSettings.of` takes, read once; `dataset_paths` is stored in it.
        parts: what `load_parts` gives for `data_path`, if it has been read already.

    Raises:
        InputError: wrong files or records, here or when an item is fetched. With `skip_bad_samples` every record is
            tried once at the start; those that fail are left out and listed in `skipped` as `{"id", "reason"}`.
    """

    def __init__(self, data_path: str, tokenizer: Any, data_args: Any, parts: Parts | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.settings = SampleSettings.of(data_args)
        self.samples = SampleMaker(tokenizer, self.settings)
        """How records become samples, and what they are refused for."""
        self.skipped: list[dict[str, Any]] = []
        _ = self.settings.template  # unknown names are refused before any work
        if self.settings.multimodal:
            image_processing(self.settings.image_aspect_ratio)
        parts = load_parts(data_path, seed=self.settings.seed or 0) if parts is None else parts
        raw = [record for _, records in parts for record in records]
        data_args.dataset_paths = self._files = [file for file, _ in parts]
        self._ends = list(itertools.accumulate(len(records) for _, records in parts))
        self.records = list(self._usable(raw))
        self.list_data_dict = [raw[record.number] for record in self.records]
        """The records as they stand in the files."""
        if self.settings.skip_bad_samples:
            self._check_some_left(len(raw))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def lengths(self) -> list[int]:
        """Words in all turns, plus 128 if there is an image (`words_per_image` in the settings: so many per image)."""
        return [record.words + self._image_words(record) for record in self.records]

    @property
    def modality_lengths(self) -> list[int]:
        """Words in all turns; negative for samples without image or video, unless `early_mix_text`."""
        mixed = self.settings.early_mix_text
        return [record.words if mixed or record.has_media else -record.words for record in self.records]

    @property
    def answers(self) -> list[str]:
        """What the model is to say in each record, all turns together."""
        return [record.answer for record in self.records]

    def process_image(
        self, image_file: str, overwrite_image_aspect_ratio: str | None = None
    ) -> tuple[torch.Tensor, tuple[int, int], str]:
        """(pixels, (width, height), "image") of a file below `image_folder`."""
        image = open_image(image_file, self.settings)
        return image_entry(image, self.settings, overwrite_image_aspect_ratio)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, samples = self.records[index], self.samples
        with naming(self.file_of(record.number)), naming(record.name):
            media = samples.open(record)
            entries = samples.entries(media)
            encoded = samples.encode(record, media)
            samples.check_cut(encoded, entries)
        return self._item(record, encoded, entries)

    def _item(self, record: Record, encoded: Encoded, entries: list[Entry]) -> dict[str, Any]:
        limit = cut_length(self.tokenizer, bool(entries), self.settings.template)
        encoded = encoded if limit is None else encoded.cut(limit)
        labels = self.samples.labels(encoded)
        if all(label == IGNORE_INDEX for label in labels):
            logger.warning("%s has no supervised token", record.name)
        item: dict[str, Any] = {
            "input_ids": torch.tensor(encoded.input_ids, dtype=torch.long),
            "labels": torch.tensor(labels, dtype=torch.long),
            "id": record.number if record.id is None else record.id,
        }
        if entries or self.settings.multimodal:
            item["image"] = entries or [dummy_entry(processor_side(self.settings.image_processor))]
        return item

    def _usable(self, raw: Sequence[JsonRecord]) -> Iterator[Record]:
        """The records; with `skip_bad_samples` those that are good, so that all processes skip the same ones."""
        for number, one in enumerate(raw):
            try:
                with naming(self.file_of(number)):
                    record = read_record(one, number)
                if self.settings.skip_bad_samples:
                    self._examine(record)
            except InputError as error:
                if not self.settings.skip_bad_samples:
                    raise
                self.skipped.append({"id": one.get("id", number), "reason": str(error)})
                logger.warning("skipped %s", error)
            else:
                yield record

    def examine(self) -> None:
        """All checks of all records, at once. Raises `InputError` for the first that is bad."""
        for record in self.records:
            self._examine(record)

    def _examine(self, record: Record) -> None:
        with naming(self.file_of(record.number)), naming(record.name):
            self.samples.examine(record)

    def file_of(self, number: int) -> str:
        """Where a record stands."""
        return short(self._files[bisect.bisect_right(self._ends, number)])

    def _check_some_left(self, total: int) -> None:
        if self.skipped and not self.records:
            raise InputError(f"all {len(self.skipped)} records are bad; the first: {self.skipped[0]['reason']}")
        logger.info("%d of %d records skipped", len(self.skipped), total)

    def _image_words(self, record: Record) -> int:
        if not record.images:
            return 0
        per_image = self.settings.words_per_image
        return WORDS_PER_IMAGE if per_image is None else per_image * len(record.images)


def make_supervised_data_module(tokenizer: Any, data_args: Any, parts: Parts | None = None) -> dict[str, Any]:
    """`train_dataset`, `eval_dataset` (None) and `data_collator` for the Trainer. No records are an `InputError`.

    Args:
        parts: as for `LazySupervisedDataset`.
    """
    dataset = LazySupervisedDataset(data_args.data_path, tokenizer, data_args, parts)
    if len(dataset) == 0:
        raise InputError(f"--data_path {data_args.data_path} holds no records to train on")
    return {
        "train_dataset": dataset,
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer),
    }
