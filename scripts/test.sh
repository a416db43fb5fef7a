#!/usr/bin/env bash
# Sets everything up and runs the tests: bash scripts/test.sh [pytest argument ...]. A few minutes on two cores;
# `-m "not slow"` runs those that take under two seconds each. Two processes share the tests; `-n 0` is one alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
use_python dev
cd "$ROOT"
exec "$PY" -m pytest -n 2 --dist worksteal "$@"
