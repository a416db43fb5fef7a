"""scripts/upstream/make_branch.sh on a stand-in with LLaVA-NeXT's faults."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import stand_in
from stand_in import TRAIN, TRAINER, git, make_checkout

from llava.errors import InputError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "upstream"))

import make_branch  # noqa: E402
import mezo_files  # noqa: E402
import trainer_edits  # noqa: E402
from source_edits import Source, undefined_names  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "LLaVA-NeXT")


def state(checkout: Path) -> tuple[str, ...]:
    """All that the command must not touch: refs, files, status."""
    files = "".join(f"{p}{p.read_bytes()!r}" for p in sorted(checkout.rglob("*.*")) if ".git" not in p.parts)
    return git(checkout, "show-ref"), files, git(checkout, "status", "--porcelain"), git(checkout, "branch")


def show(checkout: Path, commit: str, path: str) -> str:
    return git(checkout, "show", f"{commit}:{path}")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line with which the command refuses a checkout; nothing in it has changed then."""

    def run(checkout: Path, *flags: str) -> str:
        before = state(checkout) if (checkout / ".git").exists() else None
        with pytest.raises(SystemExit) as stopped:
            make_branch.main([str(checkout), *flags])
        assert stopped.value.code == 2
        assert before is None or state(checkout) == before
        output = capsys.readouterr()
        assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
        return output.err

    return run


def test_the_command_makes_three_commits_and_touches_nothing_else(checkout: Path) -> None:
    before = state(checkout)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "upstream" / "make_branch.sh"), str(checkout)],
        capture_output=True,
        text=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(checkout.parent), "GIT_DIR": "no"},
    )
    assert done.returncode == 0, done.stderr
    subjects = git(checkout, "log", "--format=%s", "main..mezo-trainer").splitlines()
    assert [subject.split(":")[0] for subject in subjects] == ["MeZO", "MeZO", "Trainer"]
    git(checkout, "branch", "-D", "mezo-trainer")
    assert state(checkout) == before
    text = Path(re.search(r"text is in (\S+)\.", done.stdout)[1])
    assert text.parent == checkout / ".git" and "NameError" in text.read_text()
    assert "push YOUR_FORK mezo-trainer" in done.stdout and "gh pr create" in done.stdout


def test_the_first_commit_takes_mezo_out_of_the_trainer_and_nothing_else(checkout: Path) -> None:
    make_branch.main([str(checkout)])
    trainer = show(checkout, "mezo-trainer~2", "llava/train/llava_trainer.py")
    kept = ast.parse(TRAINER)
    owner = next(node for node in kept.body if isinstance(node, ast.ClassDef) and node.name == "LLaVATrainer")
    names = ("_get_train_sampler", "create_optimizer", "_save")
    owner.body = [node for node in owner.body if node.name in names]
    del owner.body[1].body[1]  # the branch for zo
    assert ast.dump(ast.parse(trainer)) == ast.dump(kept)
    assert "MeZO" not in trainer and "# batches of similar length\n    def _get_train_sampler" in trainer
    assert "class LLaVATrainer(Trainer):\n    # batches" in trainer and "state_dict)\n\n\nclass" in trainer
    assert undefined_names(TRAINER) == {"is_torch_xla_available", "xm", "TrainOutput", "speed_metrics", "time"}
    assert undefined_names(trainer) == set()

    changed = git(checkout, "diff", "main", "mezo-trainer~2", "--", "llava/train/train.py")
    assert [line for line in changed.splitlines() if re.match(r"[+-] ", line)] == [
        '-    trainer_mode: str = field(default="regular")',
        "-    zo_eps: float = field(default=1e-3)  # of the perturbation",
        "-    zo_num_directions: int = field(",
        "-        default=1,",
        "-    )",
        "-    torch.cuda.synchronize()",
        "+    if torch.cuda.is_available():",
        "+        torch.cuda.synchronize()",
    ]
    assert show(checkout, "mezo-trainer", "llava/train/train_dpo.py") == stand_in.TRAIN_DPO
    assert "100755" in git(checkout, "ls-tree", "mezo-trainer", "llava/train/train.py")


def test_the_second_commit_has_the_engine_its_trainer_and_the_flags(checkout: Path) -> None:
    make_branch.main([str(checkout)])
    new = git(checkout, "diff", "--name-only", "--diff-filter=A", "mezo-trainer~2", "mezo-trainer~1").splitlines()
    assert new == sorted(mezo_files.new_files())
    assert {"docs/journal_format.md", mezo_files.SEAM, "tests/train/test_mezo_trainer_alone.py"} <= set(new)
    for name in new:
        assert show(checkout, "mezo-trainer", name) == (ROOT / name).read_text()

    readme = show(checkout, "mezo-trainer", "README.md").splitlines()
    assert readme[1].startswith("- [LLaVA-OneVision]") and readme[2:] == [make_branch.README_LINE, "## Citation"]
    train = show(checkout, "mezo-trainer~1", "llava/train/train.py")
    lines = [line.strip() for line in train.splitlines()]
    made = lines.index("trainer = trainer_class(")
    assert lines[made - 6 : made] == [
        "trainer_class = LLaVATrainer",
        'if training_args.trainer_mode == "zo":',
        "from llava.train.zo.settings import Settings",
        "from llava.train.zo.trainer import MeZOTrainer as trainer_class",
        "",
        'Settings.of(training_args).check_plan(training_args, len(data_module["train_dataset"]))',
    ]
    assert lines.index("refuse_impossible(training_args)") < made
    assert lines.index("check_kernel(training_args.zo_kernel, training_args.device.type)") < made
    assert 'if training_args.trainer_mode == "zo" or list(pathlib.Path(training_args.output_dir).glob(' in train
    for flag in ("trainer_mode", "zo_eps", "zo_num_directions", "zo_journal"):
        assert sum(line.startswith(f"{flag}: ") for line in lines) == 1, flag


def test_the_flags_parse_as_ours_do(checkout: Path) -> None:
    """The written fields, run as the dataclass that they are put into."""
    from llava.train.flags.arguments import TrainingArguments as Ours

    text = "import dataclasses\nfrom dataclasses import field\nfrom typing import Optional\n"
    text += "@dataclasses.dataclass\nclass Flags:\n" + "".join(f"    {f}\n" for f in mezo_files.flags().splitlines())
    space: dict[str, object] = {}
    exec(compile(text, "flags.py", "exec", dont_inherit=True), space)
    from transformers import HfArgumentParser

    parser = HfArgumentParser(space["Flags"])
    (parsed,) = parser.parse_args_into_dataclasses(["--trainer_mode", "zo", "--zo_eps", "1e-2"])
    assert parsed.trainer_mode == "zo" and parsed.zo_eps == 1e-2 and parsed.zo_from_journal is None
    defaults = vars(parser.parse_args_into_dataclasses([])[0])
    assert defaults == {name: Ours.__dataclass_fields__[name].default for name in defaults}
    of_mezo = {name for name in Ours.__dataclass_fields__ if name.startswith("zo_")}
    assert of_mezo - set(mezo_files.LEFT_OUT) == {name for name in defaults if name.startswith("zo_")}
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--trainer_mode", "zoo"])


@pytest.mark.parametrize("words", [["--help"], ["0.5b", "-h"]])
def test_the_script_tells_what_it_takes(words: list[str]) -> None:
    done = bash(ROOT / "scripts" / "upstream" / "files" / "mezo_onevision_si.sh", *words)
    assert done.returncode == 0 and "OUTPUT_DIR=runs/mine" in done.stdout and "set -euo" not in done.stdout


@pytest.mark.parametrize("preset", ["0.5b", "7b"])
def test_the_script_asks_for_the_same_run_as_ours(preset: str) -> None:
    """But for a flag that LLaVA-NeXT lacks, one whose default differs, and a length beyond which it says nothing."""
    ours, theirs = (
        flags_of(
            bash(ROOT / "scripts" / folder / "mezo_onevision_si.sh", preset, "--dry_run", "--zo_eps", "2e-3").stdout
        )
        for folder in ("train", "upstream/files")
    )
    assert theirs.pop("--save_strategy") == "no" and ours.pop("--train_on_answers_only") == "True"
    assert (ours.pop("--model_max_length"), theirs.pop("--model_max_length")) == ("1792", "32768")
    assert ours == theirs and ours["--zo_eps"] == "2e-3"


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("3b", {}, "preset '3b': give 0.5b or 7b"),
        ("7b", {"DATA_PATH": ""}, "set DATA_PATH"),
        ("7b", {"OUTPUT_DIR": ""}, "set OUTPUT_DIR"),
        ("7b", {"NUM_GPUS": "x"}, "NUM_GPUS=x"),
    ],
)
def test_the_script_says_what_it_lacks(preset: str, changes: dict[str, str], message: str) -> None:
    done = bash(ROOT / "scripts" / "upstream" / "files" / "mezo_onevision_si.sh", preset, "--dry_run", **changes)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr


def test_the_script_starts_a_process_a_gpu_with_the_same_python() -> None:
    done = bash(ROOT / "scripts" / "upstream" / "files" / "mezo_onevision_si.sh", "7b", "--dry_run", NUM_GPUS="2")
    assert shlex.split(done.stdout)[:5] == ["p", "-m", "torch.distributed.run", "--nproc_per_node", "2"]


def bash(script: Path, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "DATA_PATH": "d.json",
        "IMAGE_FOLDER": "i",
        "OUTPUT_DIR": "o",
        "PYTHON": "p",
    }
    return subprocess.run(["bash", str(script), *words], capture_output=True, text=True, env=environment | changes)


def flags_of(command: str) -> dict[str, str]:
    words = shlex.split(command)
    words = words[words.index("--") + 1 :] if "--" in words else words
    return {word: words[number + 1] for number, word in enumerate(words) if word.startswith("--")}


def test_the_documented_defaults_are_the_flags() -> None:
    from llava.train.flags.arguments import TrainingArguments

    text = (ROOT / "scripts" / "upstream" / "files" / "MeZO.md").read_text()
    documented = dict(re.findall(r"^\| `--(\w+)` \| `?([^|`]+?)`? \|", text, re.MULTILINE))
    fields = TrainingArguments.__dataclass_fields__
    of_mezo = {name for name in fields if name.startswith("zo_")} - set(mezo_files.LEFT_OUT)
    assert of_mezo | {"trainer_mode"} == set(documented)
    for name, value in documented.items():
        default = fields[name].default
        assert value == {None: "none", 1e-3: "1e-3"}.get(default, str(default)), name


def test_run_twice_there_is_nothing_to_do(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_branch.main([str(checkout)])
    before = state(checkout)
    make_branch.main([str(checkout)])
    assert "Nothing to do: branch mezo-trainer" in capsys.readouterr().out
    assert state(checkout) == before


def test_a_dry_run_prints_the_diff_and_writes_nothing(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def objects() -> list[Path]:
        return sorted(path for path in (checkout / ".git").rglob("*") if path.name != "index")

    before, stored = state(checkout), objects()
    make_branch.main([str(checkout), "--dry_run"])
    output = capsys.readouterr().out
    assert "-    def _inner_training_loop" in output and "+++ b/docs/MeZO.md" in output
    assert state(checkout) == before and objects() == stored


def test_hooks_do_not_run_and_settings_of_diffs_do_not_matter(checkout: Path, tmp_path: Path) -> None:
    for name in ("post-index-change", "reference-transaction"):
        hook = checkout / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
        hook.chmod(0o755)
    git(checkout, "config", "diff.external", "false")
    (tmp_path / "ran").unlink(missing_ok=True)
    make_branch.main([str(checkout), "--dry_run"])
    make_branch.main([str(checkout)])
    assert not (tmp_path / "ran").exists()
    git(checkout, "branch", "seen")
    assert (tmp_path / "ran").exists()  # so that the line above can fail


def test_a_folder_in_the_checkout_and_a_worktree_will_do(checkout: Path, tmp_path: Path) -> None:
    make_branch.main([str(checkout / "llava"), "--branch", "one"])
    git(checkout, "worktree", "add", "--quiet", "--detach", str(tmp_path / "a tree"))
    make_branch.main([str(tmp_path / "a tree"), "--branch", "two"])
    assert git(checkout, "rev-parse", "one^{tree}") == git(checkout, "rev-parse", "two^{tree}")


def test_another_branch_name_and_base(checkout: Path) -> None:
    base = git(checkout, "rev-parse", "HEAD").strip()
    (checkout / "LATER.md").write_text("Later.\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-am", "Later")
    make_branch.main([str(checkout), "--branch", "fix/mezo", "--base", "HEAD~1"])
    assert git(checkout, "rev-parse", "fix/mezo~3").strip() == base


def test_moved_and_reformatted_code_is_found(tmp_path: Path) -> None:
    trainer = TRAINER.replace("import os\n", '"""Moved."""\n\nimport os\n\nUNUSED = 1\n')
    trainer = trainer.replace(
        "self, batch_size=None, args=None,", "\n        self,\n        batch_size = None, args=None,"
    )
    trainer = trainer.replace(
        'if self.trainer_mode == "zo":\n            self.opt', "if 'zo' == self.trainer_mode:\n            self.opt"
    )
    assert trainer.count("'zo' == ") == 1
    checkout = make_checkout(tmp_path, llava_trainer=trainer.replace("\n", "\r\n"), train=TRAIN.replace("    ", "  "))
    make_branch.main([str(checkout)])
    blob = subprocess.run(
        ["git", "-C", str(checkout), "show", "mezo-trainer:llava/train/llava_trainer.py"],
        capture_output=True,
        check=True,
    ).stdout
    assert b"zo" not in blob and blob.count(b"\r\n") == blob.count(b"\n") > 10
    train = show(checkout, "mezo-trainer", "llava/train/train.py")
    assert "\n  trainer_class = LLaVATrainer\n" in train and "\n  zo_seed: int" in train
    compile(train, "train.py", "exec")


BRANCH = "if True:\n            self.opt"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("llava_trainer", "_inner_training_loop", "_loop", r"_inner_training_loop\(\) of LLaVATrainer was not found"),
        ("llava_trainer", "def zo_step", "def step", "still has .*MeZO, which is not known"),
        ("llava_trainer", "class LLaVATrainer", "class Other", "class LLaVATrainer was not found"),
        ("llava_trainer", "self.projected_grad = None", "self.mine = None", "line 17: .* also sets self.mine"),
        ("llava_trainer", "import os\n", "import os(\n", "line 1: not Python"),
        ("llava_trainer", "super().create_optimizer()", "nowhere(self)", "still uses nowhere, defined nowhere"),
        ("llava_trainer", 'if self.trainer_mode == "zo":\n            self.opt', BRANCH, "branch of create_optimizer"),
        ("train", "trainer = LLaVATrainer(", "trainer = build(", r"LLaVATrainer\(...\) in train\(\) was not found"),
        ("train", "**data_module", "train_dataset=[]", r"the \*\*data_module of LLaVATrainer\(...\) was not found"),
        ("train", "parse_args_into_dataclasses", "parse", r"parse_args_into_dataclasses\(\) in train"),
        ("train", "checkpoint-*", "step-*", r"question for checkpoint-\* in train\(\) was not found"),
        ("train", "def train():", "def main():", r"train\(\) of the module was not found"),
        ("train", "class TrainingArguments", "class Arguments", "class TrainingArguments was not found"),
    ],
)
def test_a_missing_piece_is_named_and_nothing_is_changed(
    tmp_path: Path, refused: Callable[..., str], file: str, old: str, new: str, message: str
) -> None:
    text = {"llava_trainer": TRAINER, "train": TRAIN}[file]
    assert old in text
    error = refused(make_checkout(tmp_path, **{file: text.replace(old, new)}))
    assert f"llava/train/{file}.py" in error and re.search(message, error), error


def test_other_trees_are_refused(tmp_path: Path, checkout: Path, refused: Callable[..., str]) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    assert "is no git checkout" in refused(tmp_path / "plain")
    foreign = make_checkout(tmp_path / "foreign")
    git(foreign, "rm", "--quiet", "-r", "llava/train/llava_trainer.py")
    git(foreign, "commit", "--quiet", "-m", "Something else")
    assert "is not LLaVA-NeXT: llava/train/llava_trainer.py" in refused(foreign)
    assert "--base nothing" in refused(checkout, "--base", "nothing")
    (checkout / "README.md").write_text("changed\n")
    assert "uncommitted changes (M README.md" in refused(checkout)


def test_what_is_there_already_is_refused(
    checkout: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    git(checkout, "branch", "mezo-trainer")
    assert "--branch mezo-trainer: " in refused(checkout)
    (checkout / "docs").mkdir()
    (checkout / "docs" / "MeZO.md").write_text("Another.\n")
    git(checkout, "add", "docs")
    git(checkout, "commit", "--quiet", "-m", "Documentation")
    assert "has a docs/MeZO.md of its own" in refused(checkout, "--branch", "second")
    make_branch.main([str(checkout), "--branch", "third", "--base", "HEAD~1"])
    capsys.readouterr()
    assert "has this MeZO already" in refused(checkout, "--base", "third")


def test_a_name_or_file_that_cannot_be(checkout: Path, refused: Callable[..., str]) -> None:
    assert "not a valid branch name" in refused(checkout, "--branch", "a..b")
    assert "not a valid branch name" in refused(checkout, "--branch=-x")
    assert "--text /nowhere/a.md cannot be written" in refused(checkout, "--text", "/nowhere/a.md")


def test_commits_need_a_name(checkout: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout, "config", "--unset", "user.name")
    git(checkout, "config", "user.useConfigOnly", "true")
    monkeypatch.setenv("HOME", str(checkout))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(checkout))
    assert "user.name" in refused(checkout)
    make_branch.main([str(checkout), "--dry_run"])


def test_statements_that_share_a_line_are_refused() -> None:
    source = Source("a.py", "class A:\n    x = 1; y = 2\n    z = 3\n")
    with pytest.raises(InputError, match=r"a\.py, line 2: more than one statement"):
        source.cut(source.class_named("A"), source.class_named("A").body[:1])


def test_words_that_only_look_like_mezo_are_not_taken_for_it() -> None:
    names = {"zo_eps", "_save_mezo_state", "batch_zo_seeds", "trainer_mode", "MeZO", "zone", "horizon", "azo", "mode"}
    found = {name for name in names if trainer_edits.is_about_mezo(name)}
    assert found == {"zo_eps", "_save_mezo_state", "batch_zo_seeds", "trainer_mode", "MeZO"}
