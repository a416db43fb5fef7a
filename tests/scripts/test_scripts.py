"""The shell scripts: presets, overrides, refusals, and which Python they run."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train" / "mezo_onevision_si.sh"
sys.path.insert(0, str(ROOT / "scripts" / "train"))

from run_and_evaluate import run  # noqa: E402

# The study's table of hyper-parameters for MeZO, and the settings common to its runs.
STUDY = {
    "learning_rate": "1e-6",
    "per_device_train_batch_size": "4",
    "max_steps": "5000",
    "zo_eps": "1e-3",
    "zo_num_directions": "1",
    "lr_scheduler_type": "constant",
    "weight_decay": "0.0",
    "bf16": "True",
    "trainer_mode": "zo",
    "vision_tower": "google/siglip-so400m-patch14-384",
    "mm_vision_tower_lr": "1e-6",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": "-2",
    "mm_use_im_start_end": "False",
    "mm_use_im_patch_token": "False",
    "group_by_modality_length": "True",
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "mm_patch_merge_type": "spatial_unpad",
    "gradient_accumulation_steps": "1",
    "tf32": "False",
    "gradient_checkpointing": "False",
    "lazy_preprocess": "True",
    "torch_compile": "False",
    "dataloader_drop_last": "True",
    "frames_upbound": "32",
    "attn_implementation": "sdpa",
    "model_max_length": "1792",
    "version": "qwen_1_5",
    "train_on_answers_only": "True",
}


def dry_run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    cleaned = {name: value for name, value in os.environ.items() if name not in ("MODEL", "DATA_PATH", "OUTPUT_DIR")}
    return subprocess.run(
        ["bash", str(SCRIPT), *words, "--dry_run"], capture_output=True, text=True, env={**cleaned, **environment}
    )


def train_flags(output: str) -> dict[str, str]:
    words = shlex.split(output)
    words = words[words.index("--") + 1 :]
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_adapters_keep_their_own_rate_and_eps() -> None:
    for words in (["--adapter", "prefix"], ["demo", "--lora_enable", "True"], ["0.5b", "--adapter=lora"]):
        command = dry_run(*words, DATA_PATH="x.json").stdout
        assert "--learning_rate" not in command and "--zo_eps" not in command
        assert "--max_steps" in command and words[-1] in command
        assert "--mm_tunable_parts mm_language_model " in command  # the adapter alone
    assert "--learning_rate 3 " in dry_run("--adapter", "ia3", "--learning_rate", "3").stdout
    assert "--zo_eps 1e-3" in dry_run("--adapter", "none").stdout


def test_optimizers_inside_the_backward_pass_keep_their_own_rate() -> None:
    command = dry_run("0.5b", "--optim", "adalomo", DATA_PATH="x.json").stdout
    assert "--learning_rate" not in command and "--mm_vision_tower_lr" not in command and "--optim adalomo" in command
    assert "--learning_rate" in dry_run("0.5b", "--optim", "sgd", DATA_PATH="x.json").stdout


def test_estimators_keep_their_own_number_of_directions() -> None:
    assert "--zo_num_directions" not in dry_run("--zo_estimator", "fzoo").stdout
    assert "--zo_num_directions 3" in dry_run("--zo_estimator", "fzoo", "--zo_num_directions", "3").stdout


def test_fzoo_finds_its_rate_unless_one_is_given() -> None:
    assert dry_run("--zo_estimator", "fzoo").stdout.count("--learning_rate auto") == 1
    given = dry_run("--zo_estimator", "fzoo", "--learning_rate", "3e-3").stdout
    assert "--learning_rate 3e-3" in given and "auto" not in given
    assert "--learning_rate auto" not in dry_run("--zo_estimator", "guided").stdout


def test_a_dry_run_is_asked_for_in_either_spelling() -> None:
    command = dry_run("demo", "--dry-run")
    assert command.returncode == 0 and "--trainer_mode zo" in command.stdout and "--dry" not in command.stdout


HELPED = (
    "train/mezo_onevision_si.sh",
    "train/adamw_onevision_si.sh",
    "train/pretrain_tiny.sh",
    "test.sh",
    "upstream/make_branch.sh",
)


@pytest.mark.parametrize("name", HELPED)
def test_help_sets_nothing_up(name: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(tmp_path / "none"), "HOME": str(tmp_path)}
    words = ["bash", str(ROOT / "scripts" / name)]
    texts = []
    for more in (["--help"], ["-h"], ["0.5b", "--max_steps", "3", "--help"]):
        done = subprocess.run([*words, *more], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        texts.append(done.stdout)
    assert len(set(texts)) == 1 and f"bash scripts/{name}" in texts[0] and "#" not in texts[0]
    if "onevision" in name:
        assert all(f"  {variable} " in texts[0] for variable in ("MODEL", "EVAL_DATA", "NUM_GPUS"))
        assert 30 <= len(texts[0].splitlines()) <= 45 and "--num_train_epochs" in texts[0]


GIVING_WAY = {
    "--num_train_epochs 2": ({"max_steps"}, {"learning_rate"}),
    "--num_train_epochs=2": ({"max_steps"}, set()),
    "--num-train-epochs 2": ({"max_steps"}, set()),
    "--num_train_epochs 2 --max_steps 5": (set(), {"max_steps"}),
    "--learning_rate=1e-5": ({"mm_vision_tower_lr"}, {"learning_rate"}),
    "--adapter=none": (set(), {"learning_rate", "zo_eps"}),
    "--lora_enable True --adapter none": ({"learning_rate", "zo_eps"}, set()),
    "--lora_enable False": (set(), {"learning_rate", "zo_eps"}),
    "--bf16 False": (set(), {"max_steps", "mm_vision_tower_lr"}),
}


@pytest.mark.parametrize("words", GIVING_WAY)
def test_what_the_user_gave_is_not_defeated_by_the_preset(words: str) -> None:
    """Flags that go, and some that stay."""
    gone, kept = GIVING_WAY[words]
    command = dry_run("0.5b", *words.split(), DATA_PATH="x.json").stdout
    preset = command.removesuffix(" \n").removesuffix(words)
    assert all(f"--{name} " not in preset for name in gone)
    assert all(f"--{name} " in preset for name in kept)
    assert words in command


def test_data_may_be_a_flag() -> None:
    command = dry_run("0.5b", "--data_path", "mine.json").stdout
    assert "--data_path mine.json" in command
    assert "--eval_data ''" in dry_run("demo", "--data_path=mine.json").stdout
    assert "scan/test.json" in dry_run("demo").stdout


@pytest.mark.parametrize("preset", ["0.5b", "7b"])
def test_presets_have_the_study_s_settings(preset: str) -> None:
    result = dry_run(preset, DATA_PATH="train.json")
    flags = train_flags(result.stdout)
    assert {name: flags[name] for name in STUDY} == STUDY
    assert flags["model_name_or_path"] == f"lmms-lab/llava-onevision-qwen2-{preset}-si"
    if preset == "7b":
        assert flags["mm_tunable_parts"] == "mm_language_model"


def test_environment_and_flags_override_the_preset() -> None:
    environment = {"MODEL": "m", "DATA_PATH": "d.json", "IMAGE_FOLDER": "i i", "OUTPUT_DIR": "o", "NUM_GPUS": "2"}
    result = dry_run("--max_steps", "7", MM_TUNABLE_PARTS="mm_mlp_adapter", EVAL_DATA="e.json", **environment)
    flags = train_flags(result.stdout)
    expected = {"model_name_or_path": "m", "data_path": "d.json", "image_folder": "i i", "output_dir": "o"}
    assert {name: flags[name] for name in expected} == expected
    assert (flags["mm_tunable_parts"], flags["max_steps"]) == ("mm_mlp_adapter", "7")
    assert "--num_gpus 2" in result.stdout
    assert "--eval_data e.json" in result.stdout
    assert "--eval_data ''" in dry_run(EVAL_DATA="").stdout


def test_refusals_before_anything_is_set_up() -> None:
    unknown = dry_run("9b")
    assert (unknown.returncode, unknown.stderr) == (2, "error: unknown preset '9b': allowed are demo, 0.5b and 7b\n")
    no_data = dry_run("7b")
    assert no_data.returncode == 2
    assert "DATA_PATH" in no_data.stderr


def in_common(commands: str, **environment: str) -> subprocess.CompletedProcess[str]:
    text = f'source "{ROOT}/scripts/common.sh"; {commands}'
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, env={**os.environ, **environment})


def test_threads_do_not_spin_for_long() -> None:
    """Unless the user says so."""
    assert in_common("printenv GOMP_SPINCOUNT", GOMP_SPINCOUNT="").stdout == "10000\n"
    assert in_common("printenv GOMP_SPINCOUNT", GOMP_SPINCOUNT="7").stdout == "7\n"


def test_another_checkout_s_code_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "__init__.py").write_text("raise SystemExit('the wrong checkout')")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "script.py"
    script.write_text("import llava.constants; print(llava.__file__)")
    words = f'cd "{tmp_path}"; "{sys.executable}" "{script}"'
    result = in_common(words, PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout) == (0, f"{ROOT / 'llava' / '__init__.py'}\n"), result.stderr
    result = in_common(f'export PYTHONPATH="{tmp_path}"; {words}')  # what would happen without common.sh's path
    assert "the wrong checkout" in result.stderr


def test_python_without_this_checkout_is_not_used(tmp_path: Path) -> None:
    fake = tmp_path / "python3"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')  # no site-packages: nothing is installed
    fake.chmod(0o755)
    assert in_common(f'runs_this_checkout "{fake}"').returncode != 0


def test_no_python_is_one_clear_line(tmp_path: Path) -> None:
    result = in_common(f'PATH="{tmp_path}" find_python', PYTHON="/nowhere/python")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Python >= 3.10 found")


def test_a_relative_python_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    words = ["bash", "-c", f"source {shlex.quote(str(ROOT / 'scripts' / 'common.sh'))}; find_python"]
    found = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHON": "./python"}
    )
    assert found.stdout == f"{tmp_path}/./python\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_command_that_is_stopped_may_take_its_time_to_save(tmp_path: Path, name: str) -> None:
    child = f"""
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(1)
    Path("saved").touch()
    sys.exit(130)

signal.signal(signal.{name}, save)
Path("ready").touch()
time.sleep(60)
"""
    (tmp_path / "child.py").write_text(child)
    parent = multiprocessing.get_context("fork").Process(target=_run_in_a_new_session, args=(tmp_path,))
    parent.start()
    while not (tmp_path / "ready").exists():
        assert parent.exitcode is None
        time.sleep(0.05)
    assert parent.pid is not None
    if name == "SIGINT":
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    else:
        parent.terminate()
    parent.join(timeout=30)
    assert parent.exitcode == 130
    assert (tmp_path / "saved").exists()


def _run_in_a_new_session(folder: Path) -> None:
    """With the handlers of a new Python; a fork is spared the import of what training needs."""
    os.setsid()
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run([sys.executable, "child.py"])
