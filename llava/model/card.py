"""README.md of a saved model, as Hugging Face Hub wants it: base, how it was made, licence, how to use it.

It says what the files say, and names folders and files without where they lie. A README.md that somebody else wrote, or
edited since, is kept: the last line of ours is a checksum of the rest.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llava.mezo.durable import write_durably
from llava.model.checkpoint_files import find_file, read_json, weight_files
from llava.model.checkpoint_kind import looks_local
from llava.model.hf.from_hf import is_theirs
from llava.model.own_settings import read_config
from llava.model.quantised import SETTINGS, bits_of
from llava.model.quantised_scales import SCALES_FILE

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
_MARK = "<!-- Written with the model; an edited card is kept. {} -->\n"
_MARKED = re.compile(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]{64})") + r"\Z")
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_HISTORY = re.compile(r"^## Training$.*?(?=^## Use$)", re.DOTALL | re.MULTILINE)
_OF_A_LICENCE = ("license", "license_name", "license_link")

CARD = """\
---
{front}---

# {name}

{what}

{history}## Use

{use}
## Licence

{licence}

"""
COMMAND = """\
```bash
python -m llava.ask --model-path {name}{base} --image picture.png "What is shown?"
```
"""
LOADING = """\
```python
from llava.model.builder import load_pretrained_model

tokenizer, model, image_processor, context_len = load_pretrained_model(
    "{name}", {base}, "llava", torch_dtype="auto"{bits}
)
```
"""
THEIRS = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}")
model = AutoModelForImageTextToText.from_pretrained("{name}")
```
"""
WHOLE, ADAPTER, PROJECTOR, SCALES, CONVERTED = "whole", "adapter", "projector", "scales", "converted"
WHAT = {
    WHOLE: "A LLaVA model, made from {base}.",
    ADAPTER: "An adapter for {base}, which it needs.",
    PROJECTOR: "A projector for {base}, which it needs.",
    SCALES: "Scales of the quantised layers of {base}, which they need.",
    CONVERTED: "{base} in the format of `LlavaOnevisionForConditionalGeneration` of transformers.",
}


def write_card(folder: Path, base: str, history: str = "", tags: Sequence[str] = ()) -> None:
    """The card of the model in `folder`.

    Args:
        base: folder or hub id of the model that it was made from.
        history: sections on training and accuracy, see `sections`.
        tags: besides "llava".
    """
    file = folder / CARD_FILE
    if file.exists() and not is_ours(file.read_text(encoding="utf-8", errors="replace")):
        logger.info("%s is kept: it was not written here, or was edited", file)
        return
    kind, bits, name = _kind(folder), bits_of(read_config(folder).get(SETTINGS)), folder.resolve().name
    theirs = _front_of(base)
    front = {key: theirs[key] for key in _OF_A_LICENCE if key in theirs}
    front["library_name"] = {ADAPTER: "peft", CONVERTED: "transformers"}.get(kind, "llava")
    front["pipeline_tag"] = "image-text-to-text"
    if not looks_local(base):
        front["base_model"] = base  # the Hub refuses anything else than an id
    elif "base_model" in theirs:
        front["base_model"] = theirs["base_model"]
    front["tags"] = list(dict.fromkeys(["llava", *tags]))
    shown = shown_name(base)
    needed = None if kind in (WHOLE, CONVERTED) else shown
    use = THEIRS.format(name=name) if kind == CONVERTED else ""
    if kind != SCALES:  # these need a base in so many bits
        use += COMMAND.format(name=name, base="" if needed is None else f" --model-base {needed}")
    if kind != CONVERTED:
        more = "" if bits == 16 or needed is None else f", load_{bits}bit=True"
        use += LOADING.format(name=name, base="None" if needed is None else f'"{needed}"', bits=more)
    text = CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        name=name,
        what=WHAT[kind].format(base=f"`{shown}`"),
        history=history,
        use=use,
        licence=_licence(front, shown),
    )
    write_durably(file, text + _MARK.format(_checksum(text)), sync=False)


def is_ours(text: str) -> bool:
    """Whether a README.md was written here and is as it was."""
    mark = _MARKED.search(text)
    return mark is not None and mark[1] == _checksum(text[: mark.start()])


def sections(training: Mapping[str, Any], accuracy: Mapping[str, float | None], measured: str | None = None) -> str:
    """What a card says of training and accuracy.

    Args:
        training: what and its value, a row each; None and "" are left out.
        accuracy: when and the share of right answers in 0..1; None where it was not measured.
        measured: on what, and how.
    """
    rows = [f"| {name} | {value} |" for name, value in training.items() if value not in (None, "")]
    text = "\n".join(["## Training", "", "| | |", "|---|---|", *rows, "", ""])
    shares = [f"| {when} | {100 * share:.1f} % |" for when, share in accuracy.items() if share is not None]
    if shares:
        text += "\n".join(
            ["## Accuracy", "", *([measured, ""] if measured else []), "| | |", "|---|---|", *shares, "", ""]
        )
    return text


def history_of(source: str) -> tuple[str, list[str]]:
    """What the card of a model says of its training and accuracy, and its tags; nothing if it is not one of ours."""
    file = find_file(source, CARD_FILE, local_only=True)
    text = "" if file is None else file.read_text(encoding="utf-8", errors="replace")
    found = _HISTORY.search(text) if is_ours(text) else None
    return ("", []) if found is None else (found[0], list(_front_of(source).get("tags", ())))


def shown_name(model: str) -> str:
    """A hub id as it is; of a folder, its name alone."""
    return Path(model).resolve().name if looks_local(model) else model


def _kind(folder: Path) -> str:
    if is_theirs(read_json(folder / "config.json"), str(folder)):
        return CONVERTED
    if (folder / "adapter_config.json").exists():
        return ADAPTER
    if (folder / SCALES_FILE).exists():
        return SCALES
    return WHOLE if weight_files(str(folder)) else PROJECTOR


def _front_of(model: str) -> dict[str, Any]:
    """The front matter of a model's card; empty without one that can be read."""
    file = find_file(model, CARD_FILE, local_only=True)
    found = None if file is None else _FRONT.search(file.read_text(encoding="utf-8-sig", errors="replace"))
    try:
        values = None if found is None else yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _licence(front: Mapping[str, Any], base: str) -> str:
    said = front.get("license_name") or front.get("license")
    if said is None:
        return f"That of the base model, `{base}`: see its model card."
    return f"{said}, as the card of the base model, `{base}`, says."


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
