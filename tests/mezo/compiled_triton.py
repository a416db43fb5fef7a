"""Compiles the Triton kernels for NVIDIA GPUs without one: started by test_triton.py.

Prints, as JSON, for each compute capability and kernel the number of fused multiply-adds in its PTX, as it is compiled
and as it would be with fusion allowed, the number of instructions, and the size of the machine code.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llava.mezo.kernels import triton_cuda

CAPABILITIES = (80, 86, 90)
PATTERNS = {0: "*i32", 1: "*i16", 2: "*i16", 3: "*i16"}
SCALARS = {
    **dict.fromkeys(("width", "row_width", "seed", "start", "count"), "i64"),
    **{"tensor": "u32", "directions": "i32", "scale": "fp32", "decay": "fp32"},
    **{"steps": "*fp32", "table": "*fp32", "coefficients": "*fp32", "seeds": "*i64", "rows": "*i64"},
}


def compiled(function: Any, capability: int, constants: dict[str, Any], **options: Any) -> Any:
    """`function` compiled for KIND and, as far as it has them, TARGET and DECAY; `options` beside the usual ones."""
    types = {**SCALARS, "patterns": PATTERNS[constants["KIND"]], "out": PATTERNS[constants.get("TARGET", 0)]}
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(function, signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=triton_cuda.OPTIONS | options)


def main() -> None:
    """All kernels for all kinds of weights."""
    found = []
    for capability in CAPABILITIES:
        for kind in range(4):
            kernels = [
                (triton_cuda.perturb_tiles, {"KIND": kind, "TARGET": 1}),
                (triton_cuda.perturb_tiles_of_rows, {"KIND": kind, "TARGET": 1}),
                (triton_cuda.update_tiles, {"KIND": kind, "DECAY": True}),
            ]
            for function, constants in kernels:
                result = compiled(function, capability, constants)
                allowed = compiled(function, capability, constants, enable_fp_fusion=True)
                entry = {"kernel": function.__name__, "capability": capability, **constants}
                entry |= {"fused": fused(result), "fused_if_allowed": fused(allowed)}
                entry |= {"instructions": instructions(result), "machine_code": len(result.asm.get("cubin", b""))}
                found.append(entry)
    json.dump(found, sys.stdout)


def fused(result: Any) -> int:
    """Fused multiply-adds on floats in the PTX."""
    return len(re.findall(r"\bfma\.", result.asm["ptx"]))


def instructions(result: Any) -> int:
    """Lines of the PTX that are instructions."""
    return len(re.findall(r"^\s+(?:@%p\d+ )?[a-z]+[\w.]*\s.*;$", result.asm["ptx"], re.MULTILINE))


if __name__ == "__main__":
    main()
