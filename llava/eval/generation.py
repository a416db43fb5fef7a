"""Answering questions about images with a LLaVA model, in batches: shared by `accuracy` and `model_vqa`.

Images become tiles as in training (one image by the model's `image_aspect_ratio`, several by `pad`), prompts come from
the conversation template, rows are padded on the left and carry their attention mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle, get_template
from llava.errors import InputError, naming
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    image_processing,
    processor_tile_size,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.model.llava_arch import LlavaMetaForCausalLM, PromptTooLong
from llava.model.own_settings import own_template
from llava.samples.answers import answer_tree
from llava.samples.media import Entry, dummy_entry, open_picture
from llava.samples.pictures import PictureSettings
from llava.samples.stored import StoredPicture

Turns = Sequence[tuple[str, str | None]]
_HUMAN, _ASSISTANT = 0, 1


@dataclass(frozen=True)
class Question:
    """A prompt with an open answer: `turns` are (human text, answer) pairs, the last answer None.

    `name` is how errors refer to it; `<image>` tags in the human texts stand for `images`, in order.
    `system` replaces the template's system text.
    """

    name: str
    turns: Turns
    images: list[Path | StoredPicture] = field(default_factory=list)
    system: str | None = None


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn; temperature 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise InputError("--max-new-tokens and --num_beams must be at least 1")
        if not 0 <= self.temperature < math.inf or (self.top_p is not None and not 0 < self.top_p <= 1):
            raise InputError(f"--temperature {self.temperature} must be >= 0, --top_p {self.top_p} in (0, 1]")

    def arguments(self) -> dict[str, Any]:
        """As arguments of `generate`. Sampling settings are reset when greedy: a checkpoint may carry its own."""
        if self.temperature == 0:
            sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        else:
            sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, **sampling}


class Answerer:
    """A model with its tokenizer, image processor and conversation template, ready to answer.

    `version` names a template in place of the model's own; `image_mode` replaces its way of making tiles (a value
    of `--image_aspect_ratio`) for all images; `pictures` says how they are read; `keep` has tiles by question, of
    questions that are answered several times; `choices` are the answers that can be given, where not any text can.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        version: str | None = None,
        image_mode: str | None = None,
        pictures: PictureSettings | None = None,
        keep: dict[int, list[Entry]] | None = None,
        choices: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = get_template(own_template(model.config) if version is None else version)
        self.image_mode = image_mode
        self.pictures = pictures
        self.keep = keep
        self.answers = answer_tree(choices, tokenizer, self.template) if choices else None

    @torch.no_grad()
    def answer(
        self, questions: Sequence[Question], decoding: Decoding | None = None, streamer: BaseStreamer | None = None
    ) -> list[str]:
        """One stripped answer per question, without end marks; a `streamer` gets the tokens of a single one.

        Raises:
            InputError: an image cannot be read, tags and images of a question do not match in number, or the model
                cannot take it whole.
        """
        stop = self._stop_mark()
        output = self._generate(questions, Decoding() if decoding is None else decoding, stop, streamer=streamer)
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return [_cut(text, stop) for text in texts]

    @torch.no_grad()
    def last_states(self, questions: Sequence[Question]) -> torch.Tensor:
        """Last hidden states [n, hidden] at the last token of each prompt, float32; the head's input for an answer.

        Raises:
            InputError: as `answer`.
        """
        wanted = {"output_hidden_states": True, "return_dict_in_generate": True}
        output = self._generate(questions, Decoding(max_new_tokens=1), None, **wanted)
        return output.hidden_states[0][-1][:, -1].float()

    def _generate(self, questions: Sequence[Question], decoding: Decoding, stop: str | None, **more: Any) -> Any:
        rows = [self._prompt_ids(question) for question in questions]
        input_ids, attention_mask = left_padded(rows, self._pad_id(), self.model.device)
        criteria = None
        if stop is not None:
            criteria = StoppingCriteriaList([KeywordsStoppingCriteria([stop], self.tokenizer, input_ids)])
        if self.answers is not None:
            decoding = replace(decoding, max_new_tokens=self.answers.longest)
            more["prefix_allowed_tokens_fn"] = self._allowed(0 if self._takes_images else input_ids.shape[1])
        try:
            output = self.model.generate(
                input_ids,
                attention_mask=attention_mask,
                pad_token_id=self._pad_id(),
                stopping_criteria=criteria,
                use_cache=True,
                **self._image_arguments(questions),
                **decoding.arguments(),
                **more,
            )
        except PromptTooLong as error:
            raise InputError(f"{questions[error.row].name}: {error}") from error
        repeats = isinstance(output, torch.Tensor) and not self._takes_images
        return output[:, input_ids.shape[1] :] if repeats else output

    def _allowed(self, prompt: int) -> Callable[[int, torch.Tensor], list[int]]:
        """Of a row, and its ids so far, which begin with `prompt` of the question: what may come next."""
        answers: Any = self.answers
        return lambda row, ids: answers.next(ids[prompt:].tolist()) or [self._pad_id()]

    @property
    def _takes_images(self) -> bool:
        """Whether this is a LLaVA model, whose `generate` gives new tokens alone; others repeat the prompt."""
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        return isinstance(base, LlavaMetaForCausalLM)

    def prompt(self, question: Question) -> str:
        """The text of a question in the template, with an open answer."""
        conversation = self.template.copy()
        conversation.messages = [] if conversation.offset else conversation.messages
        if question.system is not None:
            mark, break_, _ = conversation.system.partition("\n")
            is_chatml = conversation.sep_style == SeparatorStyle.CHATML
            conversation.system = f"{mark}{break_}{question.system}" if is_chatml else question.system
        for human, answer in question.turns:
            conversation.append_message(conversation.roles[_HUMAN], human)
            conversation.append_message(conversation.roles[_ASSISTANT], answer)
        return self._render(conversation)

    def _render(self, conversation: Conversation) -> str:
        if conversation.sep_style == SeparatorStyle.LLAMA_3 and conversation.tokenizer is None:
            conversation.tokenizer = self.tokenizer
        return conversation.get_prompt()

    def _prompt_ids(self, question: Question) -> torch.Tensor:
        tags = sum(human.count(DEFAULT_IMAGE_TOKEN) for human, _ in question.turns)
        if tags != len(question.images):
            raise InputError(f"{question.name}: {tags} <image> tags for {len(question.images)} images; they must match")
        if question.images and self.image_processor is None:
            raise InputError(f"{question.name}: it has images, but the model has no vision tower")
        ids: Any = tokenizer_image_token(self.prompt(question), self.tokenizer, return_tensors="pt")
        return ids

    def _image_arguments(self, questions: Sequence[Question]) -> dict[str, Any]:
        if not any(question.images for question in questions):
            return {}
        entries = [entry for question in questions for entry in self._tiles_once(question)]
        return {
            "images": [tiles.to(device=self.model.device, dtype=self.model.dtype) for tiles, _, _ in entries],
            "image_sizes": [size for _, size, _ in entries],
            "modalities": [modality for _, _, modality in entries],
        }

    def _tiles_once(self, question: Question) -> list[Entry]:
        if self.keep is None:
            return self._tiles(question)
        if id(question) not in self.keep:
            self.keep[id(question)] = self._tiles(question)
        return self.keep[id(question)]

    def _tiles(self, question: Question) -> list[Entry]:
        if not question.images:  # as in training: a text row among image rows carries one black tile
            return [dummy_entry(processor_tile_size(self.image_processor))]
        config = self.model.config
        own_mode = getattr(config, "image_aspect_ratio", None) if len(question.images) == 1 else "pad"
        mode = self.image_mode or own_mode
        process, pinpoints = image_processing(mode), getattr(config, "image_grid_pinpoints", None)
        with naming(question.name):
            images = [open_picture(path, self.pictures, "--image-folder")[0] for path in question.images]
            return [(process(image, self.image_processor, pinpoints), image.size, "image") for image in images]

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def _stop_mark(self) -> str | None:
        """Text that ends an answer when it is not a special token of the tokenizer, which `generate` knows."""
        template = self.template
        marks = {SeparatorStyle.TWO: template.sep2, SeparatorStyle.LLAMA_3: None}
        mark = template.stop_str or marks.get(template.sep_style, template.sep)
        if isinstance(mark, list):
            mark = mark[0]
        return mark if mark and mark.strip() and mark not in self.tokenizer.all_special_tokens else None


def load_model(
    path: str, base: str | None, dtype: str, attention: str = "sdpa", quantised: dict[str, Any] | None = None
) -> tuple[Any, Any, Any]:
    """(model, tokenizer, image processor) of a LLaVA checkpoint, on the GPU where there is one.

    Args:
        quantised: arguments of `from_pretrained` that say how (`load_settings.quantisation`).
    """
    tokenizer, model, image_processor, _ = load_pretrained_model(
        path,
        base,
        get_model_name_from_path(path),
        device_map="auto" if torch.cuda.is_available() else "cpu",
        torch_dtype=dtype,
        attn_implementation=attention,
        multimodal=True,
        **(quantised or {}),
    )
    return model, tokenizer, image_processor


def left_padded(rows: Sequence[torch.Tensor], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack rows of different lengths, padded on the left: ids [batch, longest] and their bool mask."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for k, row in enumerate(rows):
        input_ids[k, longest - len(row) :] = row
        mask[k, longest - len(row) :] = True
    return input_ids.to(device), mask.to(device)


def _cut(text: str, stop: str | None) -> str:
    if stop is not None:
        text = text.split(stop)[0]
    return text.strip()
