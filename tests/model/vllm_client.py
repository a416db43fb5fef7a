"""Image questions answered by vLLM's CPU build from a folder in Hugging Face's format; run by test_vllm.py apart.

python vllm_client.py CHECKPOINT QUESTION PICTURE ...
"""

from __future__ import annotations

import json
import sys

from PIL import Image
from vllm import LLM, SamplingParams


def main() -> None:
    checkpoint, question, *pictures = sys.argv[1:]
    model = LLM(checkpoint, dtype="float32", enforce_eager=True, limit_mm_per_prompt={"image": 1})
    prompt = f"<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
    asked = [{"prompt": prompt, "multi_modal_data": {"image": Image.open(file).convert("RGB")}} for file in pictures]
    answers = model.generate(asked, SamplingParams(temperature=0, max_tokens=8))
    sys.stdout.write(f"\nANSWERS {json.dumps([answer.outputs[0].text for answer in answers])}\n")


if __name__ == "__main__":
    main()
