"""Sentences of movie reviews with the mean of at least twenty people's ratings, from -4 to 4 (Hutto and Gilbert 2014).

They come with the source archive of the package vaderSentiment on the Python package index (MIT licence):

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2

`--source` is that archive, the one inside it (hutto_ICWSM_2014.tar.gz), or its unpacked folder. The question is that of
SST-2 in the MeZO paper (Malladi et al. 2023), the answer follows from the sign of the rating.
"""

from __future__ import annotations

import io
import math
import tarfile
import zlib
from pathlib import Path

from llava.data.items import Item, SourceSet
from llava.errors import InputError

PROMPT = "{text} It was"
ANSWERS = {True: "great", False: "terrible"}
SIZES = {"train": 1000, "val": 500, "test": 1000}
PLACE = (
    "in the source archive of vaderSentiment (pip download --no-deps --no-binary :all: vaderSentiment==3.3.2); give it"
)
CLEAR = 0.5
"""Sentences whose rating is nearer to zero are left out."""
FILE = "movieReviewSnippets_GroundTruth.txt"


def load(source: str, template: str, seed: int) -> SourceSet:
    """All sentences with a clear rating; one that comes again is left out.

    Raises:
        InputError: no such archive or folder, no file of sentences in it, or a line of another form.
    """
    items: dict[str, Item] = {}
    left_out = {"ratings near zero": 0, "copies of an earlier sentence": 0}
    lines = _text(Path(source)).rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        name = f"{FILE}:{number}"
        try:
            _, rating, text = line.split("\t")
            score, text = float(rating), text.strip()
            if not math.isfinite(score):
                raise ValueError(score)
        except ValueError as error:
            raise InputError(f"{name}: expected number, rating and sentence between tabs, got {line!r:.80}") from error
        if abs(score) < CLEAR:
            left_out["ratings near zero"] += 1
        elif text in items:
            left_out["copies of an earlier sentence"] += 1
        else:
            answer = ANSWERS[score > 0]
            items[text] = Item(name, template.format(text=text), answer, answer)
    return SourceSet(list(items.values()), len(lines), left_out)


def _text(source: Path) -> str:
    if source.is_dir():
        found = sorted(source.rglob(FILE))
        if not found:
            raise InputError(f"--source {source}: no {FILE} in it")
        return _decoded(found[0].read_bytes())
    if not source.is_file():
        raise InputError(f"--source {source}: no such file or folder; see `python -m llava.data.prepare --help`")
    try:
        return _decoded(_member(source.read_bytes()))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"--source {source}: is no tar archive") from error


def _member(archive: bytes) -> bytes:
    """The file of sentences in an archive, or in an archive in it."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        names = [name for name in files.getnames() if name.endswith((FILE, "hutto_ICWSM_2014.tar.gz"))]
        content = files.extractfile(names[0]) if names else None
        if content is None:
            raise InputError(f"--source: no {FILE} in the archive")
        data = content.read()
    return data if names[0].endswith(FILE) else _member(data)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"--source: {FILE} is not UTF-8 text: {error}") from error
