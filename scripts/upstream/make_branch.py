"""Make the branch for a pull request in a LLaVA-NeXT checkout; scripts/upstream/make_branch.sh runs this.

What each commit holds is in trainer_edits.py (the trainer without the copied loop), mezo_files.py (the engine, its
trainer and flags) and the folder files/ (documentation, script, text of the pull request). Edits are computed on the
checkout that is given, and a piece that is not found stops everything before a commit is made.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import mezo_files
import trainer_edits
from git_branch import Repository

from llava.errors import InputError, command

FILES = Path(__file__).parent / "files"
DOCUMENTS = {"docs/MeZO.md": FILES / "MeZO.md", "scripts/train/mezo_onevision_si.sh": FILES / "mezo_onevision_si.sh"}
DOCUMENTS_MESSAGE = """MeZO: documentation and a script

scripts/train/mezo_onevision_si.sh fine-tunes the 0.5B and 7B single-image models with the hyper-parameters of the study
behind #469; docs/MeZO.md tells how to choose them for other data.
"""
README = "README.md"
README_LINE = "- [MeZO](./docs/MeZO.md): fine-tuning with forward passes alone, in the memory of inference."
ABOVE_README_LINE = re.compile(r"^- \[LLaVA-OneVision\].*?(\r?\n)", re.MULTILINE)
PULL_REQUEST = FILES / "pull_request.md"
TITLE = "Make main train again, and MeZO as an engine of its own"
UPSTREAM = "LLaVA-VL/LLaVA-NeXT"


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Make the branch, or show what it would be."""
    parser = argparse.ArgumentParser(prog="make_branch.sh", description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder of a LLaVA-NeXT checkout")
    parser.add_argument("--branch", default="mezo-trainer", help="name of the new branch")
    parser.add_argument("--base", default="HEAD", help="commit to start from, best the newest of upstream's main")
    parser.add_argument("--text", type=Path, help="where the pull request's text goes; default: in the checkout's .git")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the diff; nothing is written")
    options = parser.parse_args(argv)

    repository = Repository(options.checkout, keep=not options.dry_run)
    base = usable_base(repository, options.base)
    last = commits(repository, base)
    if options.dry_run:
        show(repository.git("diff", "--no-ext-diff", "--no-color", "--stat", "--patch", base, last))
        return
    text = options.text or repository.folder / "mezo_pull_request.md"
    repository.git("check-ref-format", "--branch", options.branch)
    try:
        text.write_text(PULL_REQUEST.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--text {text} cannot be written ({error.strerror})") from error
    branch(repository, options.branch, base, last)
    print(next_steps(repository.path, options.branch, text))


def show(text: str) -> None:
    """Print, perhaps into a pager that is left early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def usable_base(repository: Repository, revision: str) -> str:
    """The commit to start from.

    Raises:
        InputError: the checkout has changes, there is no such commit, or it is not LLaVA-NeXT.
    """
    changed = repository.changed_files()
    if changed:
        raise InputError(f"{repository.path} has uncommitted changes ({changed[0].strip()}, ...): commit or stash them")
    base = repository.commit_named(revision)
    if base is None:
        raise InputError(f"--base {revision}: {repository.path} has no such commit")
    for path in trainer_edits.EDITED:
        if repository.read(base, path) is None:
            raise InputError(f"{repository.path} is not LLaVA-NeXT: {path} is not in {revision}")
    if repository.read(base, mezo_files.SEAM) is not None:
        raise InputError(f"--base {revision} has this MeZO already: nothing to do, or give upstream's main")
    return base


def commits(repository: Repository, base: str) -> str:
    """The commits on `base`; the last one's name.

    Raises:
        InputError: the code is not what the edits expect. All are worked out before the first is made.
    """
    original = {path: repository.read(base, path) or "" for path in trainer_edits.EDITED}
    trainer = trainer_edits.without_mezo(original)
    mezo = mezo_files.new_files()
    taken = [path for path in [*mezo, *DOCUMENTS] if repository.read(base, path) is not None]
    if taken:
        raise InputError(f"{repository.path} has a {taken[0]} of its own, which would be replaced")
    mezo[trainer_edits.TRAIN] = mezo_files.train_with_mezo(trainer[trainer_edits.TRAIN]).encode()

    documents = {path: source.read_bytes() for path, source in DOCUMENTS.items()}
    readme = {README: with_line(repository.read(base, README) or "").encode()}

    commit = base
    for files, message in (
        ({path: text.encode() for path, text in trainer.items()}, trainer_edits.MESSAGE),
        (mezo, mezo_files.MESSAGE),
        (documents | readme, DOCUMENTS_MESSAGE),
    ):
        commit = repository.commit(commit, files, message)
    return commit


def with_line(text: str) -> str:
    """README.md with a line about the documentation, below the one on LLaVA-OneVision.

    Raises:
        InputError: there is no such line.
    """
    place = ABOVE_README_LINE.search(text)
    if place is None:
        raise InputError(f"{README}: a line '- [LLaVA-OneVision](...' was not found")
    return f"{text[: place.end()]}{README_LINE}{place[1]}{text[place.end() :]}"


def branch(repository: Repository, name: str, base: str, last: str) -> None:
    """Let a new branch point to `last`, or see that it has the same contents already.

    Raises:
        InputError: there is a branch of this name with other contents, or no branch can have it.
    """
    there = repository.commit_named(f"refs/heads/{name}")
    if there is None:
        repository.git("branch", "--no-track", name, last)
        print(repository.git("log", "--oneline", "--stat", "--stat-count=4", f"{base}..{name}"))
    elif repository.tree_of(there) == repository.tree_of(last):
        print(f"Nothing to do: branch {name} is there, with just this.\n")
    else:
        raise InputError(f"--branch {name}: {repository.path} has such a branch with other contents; give another name")


def next_steps(checkout: Path, name: str, text: Path) -> str:
    """What a person does with the branch."""
    folder, file = shlex.quote(str(checkout)), shlex.quote(str(text))
    return f"""The pull request's text is in {text}. Look at the branch, push it to your fork, open the pull request:

    git -C {folder} switch {name}
    git -C {folder} push YOUR_FORK {name}
    gh pr create --repo {UPSTREAM} --base main --head YOUR_NAME:{name} --title "{TITLE}" --body-file {file}"""


if __name__ == "__main__":
    main(sys.argv[1:])
