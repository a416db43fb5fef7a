"""In place of train.py: a run of six steps that leaves a curve at once, goes on where it was, and may be told to fail.

The value is best at --learning_rate 1e-3. At 0.5 it is not finite, 0.2 to 0.3 ends with exit code 1, 0.125 hangs once.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from pathlib import Path

words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
folder, rate = Path(words["--output_dir"]), float(words["--learning_rate"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
file = folder / "validation.json"
points = json.loads(file.read_text())["history"] if file.exists() else []
print("began after step", len(points), flush=True)
if 0.2 <= rate < 0.3:
    sys.exit("error: no memory is left")
value: float | None = 1 / (1 + abs(math.log10(rate) + 3)) if rate != 0.5 else None
for step in range(len(points) + 1, 7):
    points.append({"step": step, "value": value})
    draft = folder / "draft"
    draft.write_text(json.dumps({"history": points}))
    draft.rename(file)
    time.sleep(60 if (rate == 0.125 and step == 2) or rate == 0.5 else 0.02)
(folder / "model.safetensors").write_text("")
