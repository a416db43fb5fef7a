"""The Triton kernel in Triton's interpreter against the reference: started by test_triton.py with TRITON_INTERPRET=1.

Prints a line for each result that differs, then how many cases there were.
"""

from __future__ import annotations

import sys

import torch

from llava.mezo.kernels.agreement import disagreements
from llava.mezo.kernels.interface import Kernel
from llava.mezo.kernels.triton_cuda import TritonTable

CASES = 10

if __name__ == "__main__":
    wrong = list(disagreements(Kernel("triton", TritonTable), torch.device("cpu"), range(CASES), small=True))
    sys.stdout.writelines(line + "\n" for line in wrong)
    sys.stdout.write(f"{CASES} cases\n")
    sys.exit(len(wrong) > 0)
