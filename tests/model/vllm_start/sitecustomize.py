"""Lets torchvision be imported beside a CPU build of torch, in vLLM's processes; run by Python where PYTHONPATH has it.

The package index has it built for CUDA, so that its operators do not load, and its import asks for these two, which
nothing here uses.
"""

import torch

operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
