"""Token ids and labels of every template: conformance data, labels of answers alone, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from llava import conversation
from llava.conversation import conv_templates
from llava.errors import InputError
from llava.mm_utils import tokenizer_image_token
from llava.samples import preprocess as rules
from llava.samples.chat_labels import template_system_text
from llava.samples.preprocess import preprocess, preprocess_multimodal

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
FILES = ("qwen_1_5", "qwen_1_5_im_start_end", "v1", "v1_short", "plain_qwen", "plain_llama", "llava_llama_3")
CASES = {
    f"{name}-{case['name']}": (data, case)
    for name in FILES
    for data in [json.loads((GOLDEN / "preprocess" / f"{name}.json").read_text())]
    for case in data["cases"]
}
FAILING = [name for name, (_, case) in CASES.items() if "upstream_raises" in case]
ANSWER = "A red circle left of the small table."


def tokenizer_of(data: dict):
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / data["tokenizer"], padding_side="right")
    tokenizer.model_max_length = data.get("model_max_length", tokenizer.model_max_length)
    if data.get("mm_use_im_start_end"):
        tokenizer.add_tokens(data["added_tokens"], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def qwen():
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_qwen")


@pytest.fixture(scope="module")
def llama():
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_llama", padding_side="right")


@pytest.fixture(scope="module")
def llama_3():
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_llama3")


def encode_case(data: dict, case: dict, **options):
    record = case["record"]
    media = "image" in record
    sources = [record["conversations"]]
    if media:
        wrap = bool(data.get("mm_use_im_start_end"))
        sources = preprocess_multimodal(sources, SimpleNamespace(is_multimodal=True, mm_use_im_start_end=wrap))
    return preprocess(sources, tokenizer_of(data), media, conv_templates[data["version"]], **options)


def shown(tokenizer, batch) -> list[str]:
    """The supervised text, one string per run of labels."""
    runs: list[list[int]] = [[]]
    for label in batch["labels"][0].tolist():
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def turns(*texts: str) -> list[list[dict]]:
    return [[{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]]


@pytest.mark.parametrize("name", [name for name in CASES if name not in FAILING])
def test_golden(name):
    data, case = CASES[name]
    before = copy.deepcopy(case["record"])
    batch = encode_case(data, case)
    assert batch["input_ids"][0].tolist() == case["input_ids"]
    assert batch["labels"][0].tolist() == case["labels"]
    assert case["record"] == before


@pytest.mark.parametrize("name", [name for name, (data, _) in CASES.items() if data["version"] == "qwen_1_5"])
def test_qwen_2_5_has_the_same_ids(name):
    data, case = CASES[name]
    batch = encode_case(data | {"version": "qwen_2_5"}, case)
    assert batch["input_ids"].tolist() == encode_case(data, case)["input_ids"].tolist()


@pytest.mark.parametrize("name", FAILING)
def test_where_llava_next_raises(name):
    """Other forms of turns are accepted; turns that the template cannot hold are refused."""
    data, case = CASES[name]
    accepted = ("system_turn_first", "openai_keys_first", "openai_keys_later_with_image", "human_turn_missing_first")
    if case["name"] not in accepted:
        with pytest.raises(InputError, match=r"two turns|alternate between human and gpt"):
            encode_case(data, case)
        return
    tokenizer = tokenizer_of(data)
    batch = encode_case(data, case, train_on_answers_only=True)
    end = {"plain": "\n", "qwen_1_5": "<|im_end|>", "llava_llama_3": "<|eot_id|>"}[data["version"]]
    assert shown(tokenizer, batch) == [ANSWER + end]


def test_leading_system_turn_replaces_the_default(qwen):
    source = [{"from": "system", "value": "Be brief."}, *turns("Hi", "Ho")[0]]
    text = qwen.decode(preprocess([source], qwen, False, conv_templates["qwen_1_5"])["input_ids"][0])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert "helpful" not in text


@pytest.mark.parametrize(
    ("template", "tokenizer", "end"),
    [
        ("qwen_1_5", "qwen", "<|im_end|>"),
        ("llava_llama_3", "llama_3", "<|eot_id|>"),
        ("v1", "llama", "</s>"),
        ("llava_llama_2", "llama", " </s>"),
        ("mistral_instruct", "llama", " </s>"),
        ("chatml_direct", "qwen", "<|im_end|>"),
        ("gemma_instruct", "qwen", "<end_of_turn>\n"),
        ("v0", "qwen", "\n"),
    ],
)
@pytest.mark.parametrize("media", [True, False])
def test_answers_only(request, template, tokenizer, end, media):
    tokenizer = request.getfixturevalue(tokenizer)
    source = turns("<image>\nWhat is in the image?", "A small dog.", "Which colour?", "It is red.")
    batch = preprocess(source, tokenizer, media, conv_templates[template], train_on_answers_only=True)
    assert [text.lstrip(" ") for text in shown(tokenizer, batch)] == [f"A small dog.{end}", f"It is red.{end}"]
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    assert bool((labels == ids)[labels != -100].all())
    assert (ids == -200).sum() == media


@pytest.mark.parametrize("template", ["v1", "llava_llama_2", "mistral_instruct", "chatml_direct", "gemma_instruct"])
@pytest.mark.parametrize("media", [True, False])
def test_ids_are_those_of_the_prompt(llama, template, media):
    check_ids_and_prompt(llama, template, media)


@pytest.mark.parametrize("template", ["qwen_1_5", "qwen_2", "qwen_2_5", "llava_llama_3"])
@pytest.mark.parametrize("media", [True, False])
def test_ids_of_chat_forms_are_those_of_the_prompt(request, template, media):
    check_ids_and_prompt(request.getfixturevalue("llama_3" if "llama" in template else "qwen"), template, media)


def check_ids_and_prompt(tokenizer, template, media):
    filled = conv_templates[template].copy()
    filled.tokenizer = tokenizer
    texts = ["<image>\nWhat is in the image?", "A small dog.", "And <image> here?", "It is red."]
    for number, text in enumerate(texts):
        filled.append_message(filled.roles[number % 2], text)
    system = template_system_text(filled) if template == "qwen_2_5" else None  # trained with Qwen 1.5's otherwise
    ids = preprocess(turns(*texts), tokenizer, media, conv_templates[template], system_message=system)["input_ids"]
    prompt = filled.get_prompt().removeprefix("<|begin_of_text|>")  # which the tokenizer puts there itself
    prompt = prompt.removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n")  # of the next answer
    expected = tokenizer_image_token(prompt, tokenizer) if media else tokenizer(prompt).input_ids
    assert ids[0].tolist() == expected


@pytest.mark.parametrize("answer", ["A dog.", " A dog.", "  a", "\nA dog."])
def test_plain_labels_all_of_the_answer(llama, qwen, answer):
    for tokenizer in (llama, qwen):
        batch = preprocess(turns("<image>", answer), tokenizer, True, conv_templates["plain"])
        ids = tokenizer_image_token(f"<image>{answer}\n", tokenizer)
        assert batch["input_ids"][0].tolist() == ids
        first = ids.index(-200) + 1
        assert batch["labels"][0].tolist() == [-100] * first + ids[first:]


def test_v1_works_with_a_tokenizer_without_bos(qwen):
    batch = preprocess(turns("<image>\nWhat?", "A dog.", "Sure?", "Yes."), qwen, True, conv_templates["v1"])
    assert shown(qwen, batch) == [" A dog.</s>", " Yes.</s>"]


def test_v1_ignores_incomplete_rounds_with_a_warning(llama, caplog):
    with caplog.at_level("WARNING", logger="llava"):
        batch = preprocess(turns("What?", "A dog.", "Sure?"), llama, False, conv_templates["v1"])
    assert bool((batch["labels"] == -100).all())
    assert "complete rounds" in caplog.text


def test_default_conversation_decides(monkeypatch, qwen, llama):
    source = turns("Hi", "Ho")
    monkeypatch.setattr(conversation, "default_conversation", conv_templates["qwen_1_5"])
    assert qwen.decode(preprocess(source, qwen, has_image=False)["input_ids"][0]).startswith("<|im_start|>system")
    monkeypatch.setattr(conversation, "default_conversation", conv_templates["llava_v1"])
    assert "curious human" in llama.decode(preprocess(source, llama)["input_ids"][0])
    assert "curious human" in llama.decode(rules.preprocess_v1(source, llama)["input_ids"][0])


@pytest.mark.parametrize(
    ("function", "template", "tokenizer"),
    [
        ("preprocess_qwen", "qwen_1_5", "qwen"),
        ("preprocess_llama3", "llava_llama_3", "llama_3"),
        ("preprocess_v1", "v1", "llama"),
        ("preprocess_llama_2", "llava_llama_2", "llama"),
        ("preprocess_mpt", "mpt", "qwen"),
        ("preprocess_gemma", "gemma_instruct", "qwen"),
    ],
)
def test_functions_by_name(request, function, template, tokenizer):
    tokenizer = request.getfixturevalue(tokenizer)
    source = turns("<image>\nHi", "Ho")
    named = getattr(rules, function)(source, tokenizer, has_image=True)
    chosen = preprocess(source, tokenizer, True, conv_templates[template])
    assert named["input_ids"].tolist() == chosen["input_ids"].tolist()
    assert named["labels"].tolist() == chosen["labels"].tolist()


def test_plain_by_name(llama):
    batch = rules.preprocess_plain(turns("<image>\nignored", "a caption"), llama)
    assert shown(llama, batch) == ["a caption\n"]


def test_several_samples(qwen):
    same = preprocess(turns("Hi", "Ho") * 2, qwen, False, conv_templates["qwen_1_5"])
    assert same["input_ids"].shape[0] == 2
    unequal = preprocess(turns("Hi", "Ho") + turns("Hi", "Ho ho"), qwen, False, conv_templates["qwen_1_5"])
    assert [row.ndim for row in unequal["labels"]] == [1, 1]


def test_tokenizer_is_left_as_it_is(qwen):
    before = len(qwen), qwen.get_added_vocab()
    preprocess(turns("<image>\nHi", "Ho <image>"), qwen, True, conv_templates["qwen_1_5"])
    assert (len(qwen), qwen.get_added_vocab()) == before


def test_unk_is_not_taken_for_an_image(llama_3):
    """A text-only record with a literal tag, and a tokenizer that has an unk token."""
    llama_3 = copy.deepcopy(llama_3)
    llama_3.add_special_tokens({"unk_token": "<unk>"})
    batch = preprocess(turns("an <image> and <unk>", "Ho"), llama_3, False, conv_templates["llava_llama_3"])
    assert -200 not in batch["input_ids"][0].tolist()


def test_wrong_tokenizer_is_refused(llama):
    with pytest.raises(InputError, match=r"template qwen needs the token '<\|im_start\|>'.*--version"):
        preprocess(turns("Hi", "Ho"), llama, False, conv_templates["qwen_1_5"])


def test_slow_tokenizer_is_refused(qwen):
    class Slow:
        bos_token_id = None
        model_max_length = 64

        def __call__(self, text, **options):
            raise NotImplementedError

    with pytest.raises(InputError, match="gives no character offsets"):
        preprocess(turns("Hi", "Ho"), Slow(), False, conv_templates["v1"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "non-empty list of turns"),
        (["text"], "turn 0 must be an object"),
        ([{"from": "human"}], "turn 0 needs texts under `from` and `value`"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": 3}], "turn 1 needs texts"),
    ],
)
def test_wrong_turns(qwen, source, message):
    with pytest.raises(InputError, match=f"conversation 0: .*{message}"):
        preprocess([source], qwen, False, conv_templates["qwen_1_5"])


def test_multimodal_needs_the_flag():
    sources = turns("see <image>", "ok")
    assert preprocess_multimodal(sources, SimpleNamespace(is_multimodal=False)) is sources
    moved = preprocess_multimodal(sources, SimpleNamespace(is_multimodal=True))
    assert moved[0][0]["value"] == "<image>\nsee"
    assert sources[0][0]["value"] == "see <image>"
