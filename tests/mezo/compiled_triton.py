"""Compiles the Triton kernels for NVIDIA GPUs without one: started by test_triton.py.

Prints, as JSON, for each compute capability and kernel the number of fused multiply-adds in its PTX, as it is compiled
and as it would be with fusion allowed, of barriers and of accesses of 8 bytes or more a thread, the size of the machine
code, and the registers of a thread.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llava.mezo.kernels import triton_programs
from llava.mezo.kernels.addresses import BFLOAT16
from llava.mezo.kernels.triton_cuda import OPTIONS

CAPABILITIES = (80, 86, 90)
POINTERS = {
    **dict.fromkeys(("columns", "seed", "seeds", "rows"), "*i64"),
    **dict.fromkeys(("scales", "numbers", "constants"), "*fp32"),
    **{"owners": "*i32", "first": "*u8", "second": "*u8"},
}
INTEGERS = dict.fromkeys(("height", "width"), "i64") | dict.fromkeys(("pairs", "steps", "groups"), "i32")


def compiled(function: Any, capability: int, constants: dict[str, Any], **options: Any) -> Any:
    """`function` compiled for these constants; `options` beside the usual ones."""
    types = {**POINTERS, **INTEGERS}
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(function.arg_names) if name in POINTERS}
    source = ASTSource(function, signature, constexprs=places, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS | options)


def main() -> None:
    """All kernels for bfloat16 on each capability, and for all kinds of weights on the last."""
    found = []
    for capability in CAPABILITIES:
        for kind in range(4) if capability == CAPABILITIES[-1] else (BFLOAT16,):
            usual = {"KIND": kind, "ALIGNED": True, "GAUSSIAN": True}
            kernels = [
                (triton_programs.perturb_tiles, {**usual, "TARGET": 1, "TWO": True}),
                (triton_programs.perturb_rows, {**usual, "TARGET": 1, "TWO": False}),
                (triton_programs.update_tiles, usual),
                (triton_programs.one_pair_update_tiles, usual),
            ]
            for function, constants in kernels:
                result = compiled(function, capability, constants)
                entry = {"kernel": function.__name__, "capability": capability, **constants}
                entry["fused"] = count(result, r"\bfma\.")
                if kind == BFLOAT16 and capability == CAPABILITIES[-1]:
                    allowed = compiled(function, capability, constants, enable_fp_fusion=True)
                    entry["fused_if_allowed"] = count(allowed, r"\bfma\.")
                entry |= {"barriers": count(result, r"\bbar\.sync"), "vectors": count(result, r"\.global\.v[24]")}
                found.append(
                    {**entry, "machine_code": len(result.asm.get("cubin", b"")), "registers": registers(result)}
                )
    json.dump(found, sys.stdout)


def registers(result: Any) -> int:
    """Of a thread, from the tool that Triton brings along."""
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return int(re.findall(r"\bREG:(\d+)", said.stdout + said.stderr)[0])


def count(result: Any, pattern: str) -> int:
    """Places in the PTX."""
    return len(re.findall(pattern, result.asm["ptx"]))


if __name__ == "__main__":
    main()
