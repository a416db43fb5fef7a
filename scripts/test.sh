#!/usr/bin/env bash
# Sets everything up, looks at the code (ruff, mypy) and runs the tests: bash scripts/test.sh
# With arguments, pytest alone: bash scripts/test.sh -m "not slow" (two minutes), bash scripts/test.sh tests/samples.
# Two processes share the tests; -n 0 is one alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "${BASH_SOURCE[0]}" "$@"
use_python dev
cd "$ROOT"
if [ $# -eq 0 ]; then
    "$PY" -m ruff check llava scripts tests
    "$PY" -m ruff format --check llava scripts tests
    "$PY" -m mypy
fi
exec "$PY" -m pytest -n 2 --dist worksteal "$@"
