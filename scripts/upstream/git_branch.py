"""A branch of somebody's git repository, made of objects alone: no checkout, index, hook or other branch is touched."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llava.errors import InputError

EXECUTABLE, PLAIN = "100755", "100644"


class Repository:
    """A checkout that a person named.

    Args:
        keep: False writes new objects to a folder that goes with this object, so that the repository gets nothing.

    Raises:
        InputError: it is no git checkout.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        self.path = path
        outer = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self._environment = {**outer, "GIT_OPTIONAL_LOCKS": "0"}  # status must not refresh the index
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give the path of a LLaVA-NeXT checkout")
        try:
            self.path = Path(self.git("rev-parse", "--show-toplevel").strip())
            self.folder = Path(self.git("rev-parse", "--absolute-git-dir").strip())
            objects = self.git("rev-parse", "--path-format=absolute", "--git-path", "objects").strip()
        except InputError as error:
            raise InputError(f"{path} is no git checkout ({error})") from error
        if not keep:
            self._scratch = tempfile.TemporaryDirectory()
            self._environment |= {
                "GIT_OBJECT_DIRECTORY": self._scratch.name,
                "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
                **{f"GIT_{who}_{what}": "dry-run" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            }

    def git(self, *arguments: str, given: bytes | None = None, index: Path | None = None) -> str:
        """Output of a git command, without hooks; InputError with its message when it fails."""
        done = subprocess.run(
            ["git", "-C", str(self.path), "-c", "core.hooksPath=/dev/null", *arguments],
            input=given,
            capture_output=True,
            env={**self._environment, **({} if index is None else {"GIT_INDEX_FILE": str(index)})},
        )
        if done.returncode != 0:
            raise InputError(f"git {arguments[0]}: {' '.join(done.stderr.decode(errors='replace').split())}")
        return done.stdout.decode()

    def commit_named(self, revision: str) -> str | None:
        """The commit of a revision; None if there is no such."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
        except InputError:
            return None

    def changed_files(self) -> list[str]:
        """Tracked files that differ from the last commit, as git status lists them."""
        return self.git("status", "--porcelain", "--untracked-files=no").splitlines()

    def read(self, revision: str, path: str) -> str | None:
        """A file's text; None if there is no such file.

        Raises:
            InputError: it is not UTF-8.
        """
        if not self.git("ls-tree", "--name-only", revision, path).strip():
            return None
        try:
            return self.git("show", f"{revision}:{path}")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error})") from error

    def commit(self, parent: str, files: Mapping[str, bytes], message: str) -> str:
        """A commit on `parent` with these contents of files, new ones too; scripts are executable."""
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder) / "index"
            self.git("read-tree", parent, index=index)
            listed = self.git("ls-tree", parent, *files).splitlines()
            modes = {path: entry.split()[0] for entry, _, path in (line.partition("\t") for line in listed)}
            entries = []
            for path, content in files.items():
                blob = self.git("hash-object", "-w", "--stdin", given=content).strip()
                mode = modes.get(path, EXECUTABLE if path.endswith(".sh") else PLAIN)
                entries.append(f"{mode} {blob}\t{path}\n")
            self.git("update-index", "--index-info", given="".join(entries).encode(), index=index)
            tree = self.git("write-tree", index=index).strip()
        return self.git("commit-tree", tree, "-p", parent, given=message.encode()).strip()

    def tree_of(self, commit: str) -> str:
        """The tree of a commit: equal trees are equal contents."""
        return self.git("rev-parse", f"{commit}^{{tree}}").strip()
