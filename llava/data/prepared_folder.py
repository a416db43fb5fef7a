"""A folder with a prepared set: records, pictures and a manifest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.data.items import Item
from llava.data.pictures import prepared_png
from llava.samples.loading import records_text

MANIFEST = "manifest.json"
MOST_ANSWERS = 10  # that a manifest counts by name


def write_split(folder: Path, split: str, task: str, items: Sequence[Item], max_side: int) -> dict[str, Any]:
    """Write `split.json` and its pictures, and return the split's part of the manifest.

    A picture that several records share is written once, under the number of the first of them. Image paths are
    relative to `folder`.

    Raises:
        InputError: a picture that cannot be used; its record is named.
    """
    if any(item.read is not None for item in items):
        (folder / "images").mkdir(exist_ok=True)
    written: dict[str, str] = {}  # path by what the source's file holds
    records = []
    for number, item in enumerate(tqdm(items, desc=split, unit="record")):
        identifier = f"{task}_{split}_{number:05d}"
        if item.read is None:
            records.append(_record(identifier, None, item))
            continue
        data = item.picture()
        fingerprint = hashlib.sha256(data).hexdigest()
        if fingerprint not in written:
            written[fingerprint] = f"images/{split}_{number:05d}.png"
            png = prepared_png(data, max_side, f"{item.name}: picture {item.file}")
            (folder / written[fingerprint]).write_bytes(png)
        records.append(_record(identifier, written[fingerprint], item))
    content = records_text(records).encode()
    (folder / f"{split}.json").write_bytes(content)
    return {
        "records": len(records),
        "sha256": hashlib.sha256(content).hexdigest(),
        "images": len(written),
        "images_sha256": images_digest(folder, split),
        "kinds": dict(sorted(Counter(item.kind for item in items).items())),
        "answers": _answer_counts(items),
    }


def _record(identifier: str, image: str | None, item: Item) -> dict[str, Any]:
    turns = [{"from": "human", "value": item.prompt}, {"from": "gpt", "value": item.answer}]
    picture = {} if image is None else {"image": image}
    return {"id": identifier, **picture, "kind": [item.kind], "source": item.name, "conversations": turns}


def images_digest(folder: Path, split: str) -> str:
    """SHA-256 of what `LC_ALL=C sha256sum images/SPLIT_*.png` says inside the folder."""
    files = sorted((folder / "images").glob(f"{split}_*.png"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  images/{file.name}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _answer_counts(items: Sequence[Item]) -> dict[str, Any]:
    """How many different answers there are, and the commonest of them with their numbers."""
    counts = sorted(Counter(item.answer for item in items).items(), key=lambda pair: (-pair[1], pair[0]))
    return {"different": len(counts), "most_common": dict(counts[:MOST_ANSWERS])}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write what was made from what, as JSON; no time and no path of this machine but the source as it was given."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
