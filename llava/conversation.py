"""Conversation templates: how a list of turns becomes one prompt, and the table of templates by name.

`conv_templates[name].copy()`, then `append_message(role, text)` for each turn (`None` asks for an answer), then
`get_prompt()`. `default_conversation` is the template used where none is passed along; it starts as `v0`.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
from typing import Any

from llava.chat_formats import QWEN, QWEN_SYSTEM
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError
from llava.prompt_styles import SeparatorStyle, render

__all__ = ["Conversation", "SeparatorStyle", "conv_templates", "default_conversation", "get_template"]


@dataclasses.dataclass
class Conversation:
    """A template together with the turns said so far.

    `messages` holds `[role, message]`. A message is a text, `None` (an open turn), or a tuple `(text, images, mode)`.
    `offset` counts the preset messages at the beginning; `stop_str` and `stop_token_ids` end a generated answer.
    """

    system: str
    roles: tuple[str, ...] | list[str]
    messages: list[list[Any]] = dataclasses.field(default_factory=list)
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    tokenizer_id: str = ""
    tokenizer: Any = None
    stop_str: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    skip_next: bool = False

    def get_prompt(self) -> str:
        """The prompt of all turns; a last message of `None` leaves the answer's turn open."""
        return "".join(self.pieces())

    def pieces(self) -> list[str]:
        """The prompt in parts: what stands before the turns, then one part per message. Not for LLAMA_3: one part."""
        return render(self, self._texts())

    def _texts(self) -> list[tuple[str, str]]:
        """(role, text) of each message; the first user message given with images starts with the image mark."""
        texts = []
        marked = False
        for role, message in self.messages:
            text = message
            if isinstance(message, tuple):
                text = message[0]
                if role == self.roles[0] and not marked:
                    text = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}"
                    marked = True
            texts.append((role, text or ""))
        return texts

    def append_message(self, role: str, message: Any) -> None:
        """Add a turn; `None` as the message asks for an answer."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """An independent conversation with the same turns; the tokenizer is shared."""
        messages = [[role, copy.copy(message)] for role, message in self.messages]
        return dataclasses.replace(self, messages=messages)

    def get_images(self, return_pil: bool = False) -> list[Any]:
        """All images of the user's messages in order: as given, or as base64 PNG text unless `return_pil`."""
        images: list[Any] = []
        for role, message in self.messages[self.offset :]:
            if role == self.roles[0] and isinstance(message, tuple):
                given = message[1]
                images.extend(given if isinstance(given, list | tuple) else [given])
        return images if return_pil else [_png_base64(image) for image in images]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """`[question, answer]` pairs after the preset messages, for a chat window; an open answer is `None`."""
        pairs: list[list[str | None]] = []
        for index, (_, message) in enumerate(self.messages[self.offset :]):
            text = message[0] if isinstance(message, tuple) else message
            if index % 2 == 0:
                pairs.append([text, None])
            else:
                pairs[-1][1] = text
        return pairs

    def dict(self) -> dict[str, Any]:
        """What is needed to store the conversation as JSON; images are left out."""
        messages = [[role, m[0] if isinstance(m, tuple) else m] for role, m in self.messages]
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": messages,
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


def _png_base64(image: Any) -> str:
    if not hasattr(image, "save"):
        raise InputError(f"an image of a message must be a PIL image to be encoded, got {type(image).__name__}")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


_CHAT_SYSTEM = (
    "A chat between a curious {0} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {0}'s questions."
)
_VISION_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_QWEN_2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def _qwen(system: str) -> Conversation:
    user, assistant = (QWEN.opening(role).rstrip("\n") for role in ("user", "assistant"))
    return Conversation(
        f"{QWEN.opening('system')}{system}",
        (user, assistant),
        sep_style=SeparatorStyle.CHATML,
        sep=QWEN.end_mark,
        version=QWEN.name,
    )


def _two(system: str, version: str = "v1") -> Conversation:
    return Conversation(
        system, ("USER", "ASSISTANT"), sep_style=SeparatorStyle.TWO, sep=" ", sep2="</s>", version=version
    )


def _mpt(
    system: str, roles: tuple[str, str] = (QWEN.opening("user"), QWEN.opening("assistant")), sep: str = QWEN.end_mark
) -> Conversation:
    return Conversation(system, roles, sep_style=SeparatorStyle.MPT, sep=sep, version="mpt")


def _llama_2(system: str, sep: str = "<s>", version: str = "llama_v2") -> Conversation:
    return Conversation(
        system, ("USER", "ASSISTANT"), sep_style=SeparatorStyle.LLAMA_2, sep=sep, sep2="</s>", version=version
    )


def _single(messages: list[list[str]], version: str = "Unknown") -> Conversation:
    return Conversation(_CHAT_SYSTEM.format("human"), ("Human", "Assistant"), messages, len(messages), version=version)


_V0_PRESET = [
    ["Human", "What can I do against a dry cough at night?"],
    ["Assistant", "Drink something warm, keep the air moist and raise your head. If it stays, see a doctor."],
]


def _templates() -> dict[str, Conversation]:
    plain = Conversation("", ("", ""), sep_style=SeparatorStyle.PLAIN, sep="\n")
    llama_3 = Conversation(
        _VISION_SYSTEM,
        ("user", "assistant"),
        sep_style=SeparatorStyle.LLAMA_3,
        sep="<|eot_id|>",
        version="llama_v3",
        tokenizer_id="meta-llama/Meta-Llama-3-8B-Instruct",
        stop_token_ids=[128009],
    )
    gemma = Conversation(
        "",
        ("<start_of_turn>user\n", "<start_of_turn>model\n"),
        sep_style=SeparatorStyle.GEMMA,
        sep="<end_of_turn>\n",
        version="gemma",
    )
    templates = {
        "v0": _single(_V0_PRESET),
        "llava_v0": _single([]),
        "llava_v0_mmtag": _single([], "v0_mmtag"),
        "v1": _two(_CHAT_SYSTEM.format("user")),
        "llava_v1": _two(_CHAT_SYSTEM.format("human")),
        "llava_v1_mmtag": _two(_CHAT_SYSTEM.format("user"), "v1_mmtag"),
        "llama_2": _llama_2(QWEN_SYSTEM),
        "llava_llama_2": _llama_2(_VISION_SYSTEM),
        "llava_llama_2_simple": _llama_2(QWEN_SYSTEM),
        "llava_llama_2_mmtag": _llama_2(_VISION_SYSTEM, version="llama_v2_mmtag"),
        "mistral_instruct": _llama_2("", sep=""),
        "mistral_direct": _mpt(f"{QWEN.opening('system')}Answer the questions."),
        "mistral_orca": _mpt(f"{QWEN.opening('system')}{QWEN_SYSTEM}"),
        "mistral_zephyr": _mpt(f"<|system|>\n{QWEN_SYSTEM}", ("<|user|>\n", "<|assistant|>\n"), "</s>"),
        "mpt": _mpt(f"{QWEN.opening('system')}{QWEN_SYSTEM}"),
        "qwen_1_5": _qwen(QWEN_SYSTEM),
        "qwen_2": _qwen(QWEN_SYSTEM),
        "qwen_2_5": _qwen(_QWEN_2_5),
        "plain": plain,
        "llava_llama_3": llama_3,
        "gemma_instruct": gemma,
    }
    other_names = {
        "default": "v0",
        "v0_plain": "plain",
        "vicuna_v1": "v1",
        "chatml_direct": "mistral_direct",
        "llava_mistral_instruct": "mistral_instruct",
    }
    return templates | {name: templates[same] for name, same in other_names.items()}


conv_templates: dict[str, Conversation] = _templates()
default_conversation: Conversation = conv_templates["v0"]


def get_template(name: str | None) -> Conversation:
    """The template called `name`; raises `InputError` with the allowed names for any other."""
    if name is None or name not in conv_templates:
        allowed = ", ".join(sorted(conv_templates))
        raise InputError(f"--version {name!r} is not a conversation template; allowed: {allowed}")
    return conv_templates[name]
