"""The branch that scripts/upstream/make_branch.sh makes, on LLaVA-NeXT itself: its main dies, the branch trains.

Needs a checkout and its old libraries, so these tests run only when asked for: `pytest -m upstream`, ten minutes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from small_upstream_model import TOWER, Small, make

from llava.mezo.journal.base_model import DESCRIBES
from llava.mezo.journal.files import RECORDS, Journal

ROOT = Path(__file__).parents[2]
MAKE_BRANCH = ROOT / "scripts" / "upstream" / "make_branch.sh"
HOW_TO = (
    "set LLAVA_NEXT to the folder of a clean clone of https://github.com/LLaVA-VL/LLaVA-NeXT, and LLAVA_NEXT_PYTHON to "
    "the python of an environment made as scripts/upstream/requirements.txt says"
)
pytestmark = [
    pytest.mark.upstream,
    pytest.mark.skipif(not all(map(os.environ.get, ("LLAVA_NEXT", "LLAVA_NEXT_PYTHON"))), reason=HOW_TO),
]

STEPS, SAVED = 6, 3  # two batches before the end of the first epoch of four, two into the second
LORA = {"lora_enable": True, "lora_r": 4}
PROJECTOR = {"mm_tunable_parts": "mm_mlp_adapter"}
FLAGS: dict[str, Any] = {
    "vision_tower": TOWER,
    "version": "qwen_1_5",
    "mm_tunable_parts": "mm_mlp_adapter,mm_language_model",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_use_im_patch_token": False,
    "mm_patch_merge_type": "spatial_unpad",
    "image_aspect_ratio": "pad",
    "attn_implementation": "sdpa",
    "bf16": True,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "model_max_length": 2048,
    "lazy_preprocess": True,
    "per_device_train_batch_size": 2,
    "max_steps": STEPS,
    "save_steps": SAVED,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}
LOAD = """
import sys
from safetensors.torch import save_file
from llava.model.builder import load_pretrained_model

folder, out = sys.argv[1:]
# any other device_map than "auto" goes to the GPU
_, model, processor, _ = load_pretrained_model(
    folder, None, "llava_qwen", device_map="auto", torch_dtype="bfloat16", attn_implementation="sdpa"
)
assert processor is not None
save_file({name: parameter.contiguous() for name, parameter in model.named_parameters()}, out)
"""

RESUME_POINTS = """
from llava.train.zo import journaled_run
from llava.train.train import train

journaled_run.RESUME_SECONDS = 0.0
train()
"""


class Tree(NamedTuple):
    """A checkout and the Python that runs it."""

    folder: Path
    python: str
    hub_cache: Path

    def command(self, *words: Any, pickles: bool = True) -> dict[str, Any]:
        """What subprocess needs to run this tree's code; `pickles` as transformers 4.40 resumes from may be read."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLAVA_"))}
        environment |= {
            "PYTHONPATH": str(self.folder),
            "HF_HUB_CACHE": str(self.hub_cache),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if pickles else {}),
        }
        return {"args": [self.python, *map(str, words)], "cwd": self.folder, "env": environment}

    def run(self, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            **self.command(*words, **options), capture_output=True, text=True, timeout=600, check=False
        )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make(tmp_path_factory.mktemp("small"))


def clone(folder: Path, hub_cache: Path) -> Tree:
    subprocess.run(["git", "clone", "-q", os.environ["LLAVA_NEXT"], str(folder)], check=True)
    return Tree(folder, os.path.abspath(os.environ["LLAVA_NEXT_PYTHON"]), hub_cache)


@pytest.fixture(scope="module")
def main(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """LLaVA-NeXT as it is."""
    return clone(tmp_path_factory.mktemp("main") / "LLaVA-NeXT", small.hub_cache)


@pytest.fixture(scope="module")
def branch(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """LLaVA-NeXT with the branch switched to."""
    return with_branch(tmp_path_factory.mktemp("branch") / "LLaVA-NeXT", small.hub_cache, "mezo-trainer")


@pytest.fixture(scope="module")
def first(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """LLaVA-NeXT with the first of the three commits."""
    return with_branch(tmp_path_factory.mktemp("first") / "LLaVA-NeXT", small.hub_cache, "mezo-trainer~2")


def with_branch(folder: Path, hub_cache: Path, commit: str) -> Tree:
    tree = clone(folder, hub_cache)
    made = subprocess.run(
        ["bash", str(MAKE_BRANCH), str(tree.folder), "--branch", "mezo-trainer"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    subprocess.run(["git", "switch", "-q", "--detach", commit], cwd=tree.folder, check=True)
    return tree


@pytest.fixture(scope="module")
def here(small: Small) -> Tree:
    """This tree with its own libraries."""
    return Tree(ROOT, sys.executable, small.hub_cache)


@pytest.fixture(scope="module")
def words(small: Small) -> Callable[..., list[Any]]:
    """Command line of a run, the same in all trees, with changes by keyword."""

    def make_words(output_dir: Path, **changes: Any) -> list[Any]:
        values = {"model_name_or_path": small.checkpoint, "data_path": small.data, "image_folder": small.images}
        command: list[Any] = ["llava/train/train_mem.py"]
        for name, value in (values | FLAGS | changes | {"output_dir": output_dir}).items():
            command += [f"--{name}", value]
        return command

    return make_words


@pytest.fixture(scope="module")
def run_of(words: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of an unbroken run of a tree; each takes place once."""
    done: dict[tuple[str, ...], Path] = {}

    def run(tree: Tree, **changes: Any) -> Path:
        key = (str(tree.folder), *map(str, changes.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            train(tree, words(folder, **changes))
            done[key] = folder
        return done[key]

    return run


def train(tree: Tree, command: list[Any], **options: Any) -> None:
    done = tree.run(*command, **options)
    assert done.returncode == 0, done.stderr[-3000:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run or a saved model has in weights of its own."""
    tensors: dict[str, torch.Tensor] = {}
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        if path.name != "training_args.bin":
            tensors |= load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert tensors
    return tensors


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["regular", "zo"])
def test_main_dies_of_a_name_that_is_not_defined(
    mode: str, main: Tree, words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    done = main.run(*words(tmp_path, trainer_mode=mode))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("NameError: name "), done.stderr[-3000:]


@pytest.mark.parametrize("changes", [{}, {**LORA, "mm_tunable_parts": "mm_language_model"}], ids=["all", "lora"])
def test_a_regular_run_resumes_to_the_same_weights(
    changes: dict[str, Any],
    branch: Tree,
    run_of: Callable[..., Path],
    words: Callable[..., list[Any]],
    small: Small,
    tmp_path: Path,
) -> None:
    whole = run_of(branch, **changes)
    assert not same(weights(whole), weights(small.checkpoint))
    shutil.copytree(whole / f"checkpoint-{SAVED}", tmp_path / f"checkpoint-{SAVED}")
    train(branch, words(tmp_path, **changes))
    assert same(weights(tmp_path), weights(whole))


def test_the_first_commit_alone_trains(first: Tree, branch: Tree, run_of: Callable[..., Path]) -> None:
    assert same(weights(run_of(first)), weights(run_of(branch)))


@pytest.mark.parametrize("mode", ["regular", "zo"])
def test_a_trained_model_loads_back(mode: str, branch: Tree, run_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = run_of(branch) if mode == "regular" else run_of(branch, trainer_mode=mode)
    loaded = branch.run("-c", LOAD, folder, tmp_path / "loaded.safetensors")
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert same(weights(tmp_path), weights(folder))


def test_a_projector_alone_goes_into_the_next_run(
    branch: Tree, run_of: Callable[..., Path], words: Callable[..., list[Any]], small: Small, tmp_path: Path
) -> None:
    projector = weights(run_of(branch, **PROJECTOR))
    before = weights(small.checkpoint)
    assert {name for name in before if "mm_projector" in name} == projector.keys()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in projector.items())
    file = run_of(branch, **PROJECTOR) / "mm_projector.bin"
    train(branch, words(tmp_path, **PROJECTOR, pretrain_mm_mlp_adapter=file, max_steps=1, learning_rate=0.0))
    assert same(weights(tmp_path), projector)


def test_lora_saves_the_adapter_and_what_else_is_trained(
    branch: Tree, run_of: Callable[..., Path], small: Small
) -> None:
    folder = run_of(branch, **LORA)
    adapter = torch.load(folder / "adapter_model.bin", weights_only=True)
    # they start as zeros, and upstream also puts some into the tower, whose rate is the same
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name and "vision_tower" not in name)
    rest = torch.load(folder / "non_lora_trainables.bin", weights_only=True)
    before = {f"base_model.model.{name}": tensor for name, tensor in weights(small.checkpoint).items()}
    assert rest.keys() == {name for name in before if "mm_projector" in name}
    assert not any(torch.equal(tensor, before[name]) for name, tensor in rest.items())


def test_a_zeroth_order_run_without_a_journal_resumes_from_a_checkpoint(
    branch: Tree, run_of: Callable[..., Path], words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    whole = run_of(branch, trainer_mode="zo")
    shutil.copytree(whole / f"checkpoint-{SAVED}", tmp_path / f"checkpoint-{SAVED}")
    train(branch, words(tmp_path, trainer_mode="zo"))
    assert same(weights(tmp_path), weights(whole))


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, SAVED - 1), ({}, STEPS - 1), (PROJECTOR, STEPS - 1), (LORA, STEPS - 1)],
    ids=["before the checkpoint", "after the checkpoint", "projector", "lora"],
)
def test_a_killed_zeroth_order_run_goes_on_bit_for_bit(
    changes: dict[str, Any],
    steps: int,
    branch: Tree,
    run_of: Callable[..., Path],
    words: Callable[..., list[Any]],
    small: Small,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    command = words(run, trainer_mode="zo", **changes)
    kill_after(steps, branch, command, run / "mezo_journal" / RECORDS)
    assert steps <= len(Journal.read(run / "mezo_journal").records) < STEPS
    train(branch, command)
    replay(branch, small.checkpoint, run, tmp_path / "replayed")
    final, replayed = weights(run), weights(tmp_path / "replayed")
    assert all(torch.equal(final[name], replayed[name]) for name in final)
    if changes != LORA:  # which starts at random
        assert same(final, weights(run_of(branch, trainer_mode="zo", **changes)))


def test_a_killed_run_goes_on_from_its_journal_without_a_pickle(
    branch: Tree, run_of: Callable[..., Path], words: Callable[..., list[Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["-c", RESUME_POINTS, *words(run, trainer_mode="zo", save_strategy="no")[1:]]
    kill_after(STEPS - 1, branch, command, run / "mezo_journal" / RECORDS, pickles=False)
    kept = list((run / "mezo_journal").rglob("*"))
    assert any(path.name.startswith("resume-") for path in kept)
    assert {path.suffix for path in kept if path.is_file()} <= {*DESCRIBES, ".bin", ".safetensors", ""}
    assert [path.name for path in kept if path.suffix == ".bin"] == [RECORDS]
    train(branch, command, pickles=False)
    assert same(weights(run), weights(run_of(branch, trainer_mode="zo")))


def kill_after(steps: int, tree: Tree, command: list[Any], records: Path, **options: Any) -> None:
    """Start a run, and kill it once this many steps are in its journal."""
    with subprocess.Popen(
        **tree.command(*command, **options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        deadline = time.monotonic() + 300
        while not (records.exists() and records.stat().st_size >= 36 * steps):  # bytes of a record
            assert child.poll() is None and time.monotonic() < deadline, child.communicate()[1][-3000:]
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)


def replay(tree: Tree, base: Path, run: Path, out: Path) -> None:
    done = tree.run(
        "-m", "llava.mezo.journal.replay", "--model-path", base, "--journal", run / "mezo_journal", "--output-dir", out
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("replayed_by", ["branch", "here"])
@pytest.mark.parametrize("run_by", ["branch", "here"])
def test_a_journal_replays_to_the_bits_of_its_run_in_both_trees(
    run_by: str, replayed_by: str, run_of: Callable[..., Path], small: Small, tmp_path: Path, request: Any
) -> None:
    run = run_of(request.getfixturevalue(run_by), trainer_mode="zo")
    replay(request.getfixturevalue(replayed_by), small.checkpoint, run, tmp_path)
    assert same(weights(tmp_path), weights(run))
    assert not same(weights(run), weights(small.checkpoint))


def test_the_tests_that_go_along_pass_there(branch: Tree) -> None:
    done = branch.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0, done.stdout[-3000:]
