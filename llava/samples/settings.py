"""What decides how a record becomes a sample, settled once for a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llava import conversation
from llava.conversation import Conversation, get_template
from llava.samples.lenient import attributes_of
from llava.samples.pictures import PictureSettings
from llava.samples.video import VideoSettings


@dataclass(frozen=True)
class SampleSettings:
    """Those flags of `DataArguments` that samples depend on, by the same names, and what a model adds to them."""

    image_folder: str | None = None
    video_folder: str | None = None
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: Any = None
    image_processor: Any = None
    """The vision tower's; without it records cannot have images."""
    is_multimodal: bool = True
    version: str | None = None
    """Name of the template; None: `llava.conversation.default_conversation`."""
    mm_use_im_start_end: bool = False
    train_on_answers_only: bool = False
    use_template_system_prompt: bool = False
    add_time_instruction: bool = False
    early_mix_text: bool = False
    words_per_image: int | None = None
    count_image_tokens: Callable[..., int] | None = None
    """Of an entry's three parts: with it the check against `model_max_length` counts the features of images."""
    whole_answers_for: str = ""
    """The flag, if any, for which an answer that `model_max_length` cuts off in part is refused as well."""
    skip_bad_samples: bool = False
    seed: int | None = None
    video: VideoSettings = field(default_factory=VideoSettings)
    pictures: PictureSettings = field(default_factory=PictureSettings)

    @classmethod
    def of(cls, data_args: Any) -> SampleSettings:
        """From any object with some of these attributes; those that it lacks have their defaults."""
        parts = {"video": VideoSettings.of(data_args), "pictures": PictureSettings.of(data_args)}
        return cls(**attributes_of(cls, data_args) | parts)

    @property
    def template(self) -> Conversation:
        """The conversation template. Raises `InputError` for an unknown name."""
        return get_template(self.version) if self.version else conversation.default_conversation

    @property
    def multimodal(self) -> bool:
        """Whether samples have images, if only in place of none."""
        return self.image_processor is not None and bool(self.is_multimodal)
