"""Templates and prompts against the conformance data; tokenizers only when asked for; unknown names are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer

from llava import conversation
from llava.conversation import Conversation, SeparatorStyle, conv_templates, get_template
from llava.errors import InputError

GOLDEN = Path(__file__).parent / "assets" / "golden"
DATA = json.loads((GOLDEN / "conversation" / "templates.json").read_text())
CASES = {f"{case['template']}-{case['name']}": case for case in DATA["cases"]}


def fill(template: str, messages: list) -> Conversation:
    filled = conv_templates[template].copy()
    for number, message in enumerate(messages):
        filled.append_message(filled.roles[number % 2], tuple(message) if isinstance(message, list) else message)
    return filled


def test_names_and_default():
    assert sorted(conv_templates) == sorted(DATA["template_names"])
    assert conversation.default_conversation is conv_templates[DATA["default_conversation_name"]]
    assert {style.name: style.value for style in SeparatorStyle} == DATA["separator_styles"]


@pytest.mark.parametrize("name", DATA["fields"])
def test_fields(name):
    template = conv_templates[name]
    expected = dict(DATA["fields"][name])
    assert len(template.messages) == expected.pop("preset_messages")
    assert template.sep_style.name == expected.pop("sep_style")
    assert list(template.roles) == expected.pop("roles")
    assert {key: getattr(template, key) for key in expected} == expected


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "prompt" in case])
def test_prompt(name):
    case = CASES[name]
    assert fill(case["template"], case["messages"]).get_prompt() == case["prompt"]


@pytest.mark.parametrize("template", ["plain", "v0_plain"])
def test_plain_prompt_with_an_answer(template):
    # LLaVA-NeXT raises here, as the second separator is None
    assert fill(template, ["<image>\nWhat?", "A dog."]).get_prompt() == "<image>\nWhat?\nA dog."


def test_llama_3_needs_a_tokenizer_only_for_the_prompt():
    filled = fill("llava_llama_3", ["Hello", None])
    with pytest.raises(InputError, match="meta-llama/Meta-Llama-3-8B-Instruct"):
        filled.get_prompt()


def test_llama_3_prompt_with_a_given_tokenizer(golden):
    filled = fill("llava_llama_3", ["Hello", "Good day.", "Bye", None])
    filled.tokenizer = AutoTokenizer.from_pretrained(golden / "tokenizer_llama3")
    turns = [("system", filled.system), ("user", "Hello"), ("assistant", "Good day."), ("user", "Bye")]
    expected = "<|begin_of_text|>" + "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in turns
    )
    assert filled.get_prompt() == expected + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_llama_3_tokenizer_from_a_folder(golden):
    filled = fill("llava_llama_3", ["Hello", None])
    filled.tokenizer_id = str(golden / "tokenizer_llama3")
    assert "user<|end_header_id|>\n\nHello<|eot_id|>" in filled.get_prompt()


def test_unknown_template_lists_the_allowed_ones():
    with pytest.raises(InputError, match=r"'vicuna'.*qwen_1_5.*vicuna_v1"):
        get_template("vicuna")


def test_style_without_rendering_is_refused():
    with pytest.raises(InputError, match="CHATML"):
        Conversation("", ("a", "b"), sep_style=SeparatorStyle.QWEN).get_prompt()


def test_copy_does_not_share_turns():
    first = conv_templates["v0"].copy()
    first.append_message("Human", "more")
    first.messages[0][1] = "changed"
    assert len(conv_templates["v0"].messages) == 2
    assert conv_templates["v0"].messages[0][1] != "changed"


def test_views_of_a_conversation():
    image = Image.new("RGB", (2, 2))
    filled = fill("v0", [["What is this?", [image], "Pad"], "A dog.", "Sure?", None])
    assert filled.get_images(return_pil=True) == [image]
    assert isinstance(filled.get_images()[0], str)
    assert filled.to_gradio_chatbot() == [["What is this?", "A dog."], ["Sure?", None]]
    stored = filled.dict()
    assert set(stored) == {"system", "roles", "messages", "offset", "sep", "sep2"}
    assert stored["messages"][2] == ["Human", "What is this?"]
    json.dumps(stored)


def test_only_the_first_user_message_with_images_is_marked():
    filled = fill("v1", [["One <image>", [None], "Pad"], "a", ["Two", [None], "Pad"], None])
    assert filled.get_prompt().count("<image>") == 1
    assert "USER: <image>\nOne ASSISTANT:" in filled.get_prompt()


@pytest.mark.parametrize("name", sorted(set(conv_templates) - {"llava_llama_3"}))
def test_every_template_renders_in_order(name):
    filled = fill(name, ["first question", "first answer", "second question", None])
    assert all(isinstance(role, str) for role in filled.roles)
    prompt = filled.get_prompt()
    places = [prompt.index(text) for text in ("first question", "first answer", "second question")]
    assert places == sorted(places)
    assert "".join(filled.pieces()) == prompt
    assert len(filled.pieces()) == 1 + len(filled.messages)
