"""Files of tiny runs of all kinds: who may read them, that a replay has the same, and that all commands take them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_runs import same, weights

from llava import ask
from llava.errors import InputError
from llava.eval import accuracy, model_vqa
from llava.mezo.journal.replay import main as replay
from llava.model import convert, merge
from llava.model.adapter_kinds import MERGED
from llava.model.card import CARD_FILE, is_ours
from llava.train.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture_of_the_loss")]

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
DATA = Path(__file__).parents[2] / "playground" / "data" / "scan"
LANGUAGE_MODEL = {"mm_tunable_parts": "mm_language_model"}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "projector": {"mm_tunable_parts": "mm_mlp_adapter"},
    "scales": {"bits": 4, "zo_quantized_scales": True},
    "lora": {"adapter": "lora", "lora_r": 4, "save_strategy": "steps", "save_steps": 1},
    "dora": {"adapter": "dora", "lora_r": 4},
    "ln": {"adapter": "ln"},
    "milora": {"adapter": "milora", "lora_r": 4},
    "mora": {"adapter": "mora", "lora_r": 4, **LANGUAGE_MODEL},
    "houlsby": {"adapter": "houlsby", "lora_r": 4, **LANGUAGE_MODEL},
    "prefix": {"adapter": "prefix", "adapter_tokens": 4, **LANGUAGE_MODEL},
    "prompt": {"adapter": "prompt", "adapter_tokens": 4, **LANGUAGE_MODEL},
}


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def run(tiny_run: Callable[..., list[str]], tmp_path: Path) -> Callable[[str], Path]:
    """The folder of a run of two steps, with six records."""

    def run_of(kind: str) -> Path:
        (tmp_path / "six.json").write_text(json.dumps(json.loads((DATA / "val.json").read_text())[:6]))
        if kind == "scales":
            pytest.importorskip("bitsandbytes")
        usual = {"mm_tunable_parts": "mm_mlp_adapter,mm_language_model", "attn_implementation": "sdpa", "max_steps": 2}
        usual |= {"data_path": tmp_path / "six.json", "trainer_mode": "zo", "save_strategy": "no"}
        train(argv=tiny_run(f"llava-{kind}", **usual | KINDS[kind]))
        return tmp_path / f"llava-{kind}"

    return run_of


def check_modes(umask: int, *folders: Path) -> None:
    for path in (found for folder in folders for found in [folder, *folder.rglob("*")]):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_has_the_files_of_the_run(kind: str, run: Callable[[str], Path], tmp_path: Path) -> None:
    folder, again = run(kind), tmp_path / "again"
    words = ["--model-path", str(TINY), "--journal", str(folder / "mezo_journal"), "--output-dir", str(again)]
    assert replay(words) == 0
    both = {path.name for path in again.iterdir()} & {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= both
    assert kind == "projector" or {path.name for path in folder.glob("*.safetensors")} <= both
    differ = {name for name in both if (again / name).read_bytes() != (folder / name).read_bytes()}
    assert differ == ({"config.json"} if kind == "projector" else set())  # that replay needs no base
    trained, replayed = weights(folder), weights(again)
    assert same(trained, {name: replayed[name] for name in trained})
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    card = (folder / CARD_FILE).read_text()
    assert is_ours(card) and str(tmp_path) not in card and str(TINY.parent) not in card
    assert "| data | `six.json` |\n| records | 6 |" in card and "MeZO" in card


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_files_follow_the_umask(kind: str, umask: int, run: Callable[[str], Path], tmp_path: Path) -> None:
    folder = run(kind)
    words = ["--model-path", str(TINY), "--journal", str(folder / "mezo_journal"), "--output-dir"]
    assert replay([*words, str(tmp_path / "again")]) == 0
    written = [folder, tmp_path / "again"]
    if kind == "lora":
        assert (folder / "checkpoint-2").is_dir()
        merge.merge(str(folder), str(TINY), tmp_path / "merged")
        whole = tmp_path / "merged"
        tiles = {"image_aspect_ratio": "anyres_max_4", "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
        config = json.loads((whole / "config.json").read_text()) | tiles
        (whole / "config.json").write_text(json.dumps(config))
        convert.convert(str(whole), tmp_path / "theirs", verify=False, images_only=True)
        written += [whole, tmp_path / "theirs"]
        for made in written[2:]:  # they tell of the training too
            card = (made / CARD_FILE).read_text()
            assert is_ours(card) and "| adapter | lora |" in card and str(tmp_path) not in card
    check_modes(umask, *written)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "houlsby", "mora"])
def test_every_command_takes_an_adapter(
    kind: str, run: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(kind)
    model = ["--model-path", str(folder), "--model-base", str(TINY)]
    picture = str(next((DATA / "images").iterdir()))
    capsys.readouterr()
    ask.main([*model, "--image", picture, "--max-new-tokens", "3", "Is there a tumor? Yes or No?"])
    assert capsys.readouterr().out.strip()
    files = ["--image-folder", str(DATA)]
    data, answers = str(tmp_path / "six.json"), tmp_path / "answers.jsonl"
    accuracy.main([*model, *files, "--data", data, "--output", str(answers)])
    assert json.loads(answers.with_suffix(".json").read_text())["total"] == 6
    model_vqa.main([*model, *files, "--question-file", data, "--answers-file", str(tmp_path / "vqa.jsonl")])
    found = [json.loads(line)["pred_response"] for line in (tmp_path / "vqa.jsonl").read_text().splitlines()]
    assert found and found[0] == json.loads(answers.read_text().splitlines()[0])["prediction"]
    peft_type = json.loads((folder / "adapter_config.json").read_text())["peft_type"]
    if peft_type in MERGED:
        merge.merge(str(folder), str(TINY), tmp_path / "merged")
        ask.main(["--model-path", str(tmp_path / "merged"), "--image", picture, "--max-new-tokens", "3", "Which?"])
    else:
        for command in (
            lambda: merge.merge(str(folder), str(TINY), tmp_path / "merged"),
            lambda: convert.convert(str(folder), tmp_path / "theirs"),
        ):
            with pytest.raises(InputError, match=f"of kind {peft_type}"):
                command()
