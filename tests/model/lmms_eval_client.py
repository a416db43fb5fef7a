"""One image question through lmms-eval's own class, answered by a checkpoint; run by test_lmms_eval.py apart.

python lmms_eval_client.py CHECKPOINT PICTURE QUESTION
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

from lmms_eval.api.instance import Instance
from lmms_eval.models.simple.llava_onevision import Llava_OneVision
from PIL import Image

import llava.model  # tells transformers' AutoConfig, which the class asks, of our types


def main() -> None:
    checkpoint, picture, question = sys.argv[1:]
    assert llava.model
    model = Llava_OneVision(pretrained=checkpoint, device="cpu", device_map="auto", model_name="llava_qwen")
    model.model.float()
    model.task_dict = {"task": {"test": [SimpleNamespace(image=Image.open(picture).convert("RGB"))]}}
    arguments = (question, {"max_new_tokens": 8}, lambda doc: [doc.image], 0, "task", "test")
    metadata = {"task": "task", "doc_id": 0, "repeats": 1}
    request = Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)
    sys.stdout.write(f"ANSWER {model.generate_until([request])[0]!r}\n")


main()
