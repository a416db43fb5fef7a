#!/usr/bin/env bash
# Sets everything up and runs the tests: bash scripts/test.sh [pytest argument ...]. Some 17 minutes on two cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
use_python dev
cd "$ROOT"
exec "$PY" -m pytest "$@"
