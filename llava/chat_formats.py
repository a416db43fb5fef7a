"""Chat forms with marker tokens (Qwen, Llama 3): prompts and labels are both made of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatFormat:
    """What stands around a turn's text, and which tokens are labelled wherever they are."""

    name: str
    header: str
    end_mark: str
    after: str
    labelled_everywhere: tuple[str, ...]
    begin: str = ""
    strip: bool = False

    def opening(self, role: str) -> str:
        """What stands before a turn's text."""
        return self.header.format(role=role)


QWEN = ChatFormat(
    name="qwen",
    header="<|im_start|>{role}\n",
    end_mark="<|im_end|>",
    after="\n",
    labelled_everywhere=("<|im_start|>", "<|im_end|>", "\n"),
)
LLAMA_3 = ChatFormat(
    name="llama_v3",
    header="<|start_header_id|>{role}<|end_header_id|>\n\n",
    end_mark="<|eot_id|>",
    after="",
    labelled_everywhere=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    begin="<|begin_of_text|>",
    strip=True,
)
QWEN_SYSTEM = "You are a helpful assistant."
