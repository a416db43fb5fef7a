"""The report of `llava.check.command` as text for the terminal: a section for each subject, the verdict last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava.check.lengths import bars

LONGEST_ANSWER = 60

Report = Mapping[str, Any]


def report_lines(report: Report, show: int) -> list[str]:
    """All lines; of each kind of finding the first `show`, then how many more there are."""
    sections = {
        "Data": _data(report),
        "Problems": _problems(report, show),
        "Lengths": _lengths(report),
        "Answers": _answers(report, show),
        "Repeats": _repeats(report, show),
        "Warnings": _warnings(report, show),
    }
    lines: list[str] = []
    for title, body in sections.items():
        lines += [title, *(f"  {line}" for line in body), ""]
    return [*lines, verdict(report)]


def verdict(report: Report) -> str:
    """The last line."""
    if report["would_fail"]:
        return f"training would fail on {report['would_fail']} of {report['records']} records"
    if report["lengths_checked"]:
        return "ready to train"
    return "ready to train, as far as can be told without --model-path"


def _data(report: Report) -> Iterator[str]:
    for entry in report["files"]:
        yield f"{entry['file']}: {entry['records']} records"
    yield f"{report['records']} records with {report['turns']} turns"
    yield ", ".join(f"{count} {kind}" for kind, count in report["kinds"].items())


def _problems(report: Report, show: int) -> Iterator[str]:
    for problem in report["problems"].values():
        found = problem["found"]
        if found:
            yield f"{problem['what']}: {len(found)}"
            yield from _list([_sentence(entry) for entry in found], show)
    if not report["would_fail"]:
        yield "none"


def _lengths(report: Report) -> Iterator[str]:
    lengths = report["lengths"]
    if not report["lengths_checked"]:
        yield "not checked: they need the model's tokenizer and image settings; give --model-path"
    elif lengths is None:
        yield "no record whose length can be told"
    else:
        yield (
            f"tokens of {lengths['records']} records, images included: min {lengths['min']}, median "
            f"{lengths['median']}, 95 % {lengths['percentile_95']}, max {lengths['max']}"
        )
        yield from bars(lengths["histogram"], lengths["limit"])
        gone = len(report["problems"]["cut"]["found"])
        yield f"--model_max_length {lengths['limit']} cuts {lengths['cut']} records, {gone} of them with their answer"


def _answers(report: Report, show: int) -> Iterator[str]:
    answers = report["answers"]
    yield f"{answers['total']} answers, {answers['distinct']} different"
    for entry in answers["most_frequent"]:
        yield f"{entry['count']:>8}  {_share(entry['count'], answers['total'])}  {_short(entry['answer'])}"
    if answers["rest"]:
        yield f"{answers['rest']:>8}  {_share(answers['rest'], answers['total'])}  (all others)"
    empty = report["empty_answers"]
    if empty:
        yield f"records with an empty answer: {len(empty)}"
        yield from _list([entry["record"] for entry in empty], show)


def _repeats(report: Report, show: int) -> Iterator[str]:
    kinds = {
        "same_id": "ids that several records have",
        "identical": "groups of records that are equal but perhaps for their id",
        "contradicting": "questions about one image that have different answers",
    }
    for kind, what in kinds.items():
        groups = report[kind]
        yield f"{what}: {len(groups)}"
        yield from _list([_members(group, show) for group in groups], show)


def _warnings(report: Report, show: int) -> Iterator[str]:
    if report["kinds"]["text only"] and report["kinds"]["text only"] < report["records"]:
        yield f"{report['kinds']['text only']} text only records go through the vision tower with an empty image each"
    for what, found in report["warnings"].items():
        yield f"{what}: {len(found)} records"
        same = all(entry["message"] == what for entry in found)
        yield from _list([entry["record"] if same else _sentence(entry) for entry in found], show)
    if not report["warnings"]:
        yield "none from training"


def _list(lines: Sequence[str], show: int) -> Iterator[str]:
    for line in lines[:show]:
        yield f"  {line}"
    if len(lines) > show:
        yield f"  ... and {len(lines) - show} more; --output lists all"


def _members(group: Sequence[Mapping[str, Any]], show: int) -> str:
    names = [entry["record"] for entry in group[:show]]
    more = len(group) - len(names)
    return " and ".join(names) + (f" and {more} more" if more else "")


def _sentence(entry: Mapping[str, Any]) -> str:
    return f"{entry['record']}: {entry['message']}"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:5.1f} %"


def _short(answer: str) -> str:
    cut = answer if len(answer) <= LONGEST_ANSWER else answer[: LONGEST_ANSWER - 1] + "…"
    return repr(cut)
