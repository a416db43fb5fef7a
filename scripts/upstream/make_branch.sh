#!/usr/bin/env bash
# Turns a LLaVA-NeXT checkout into a branch that trains again and has this MeZO: three commits for a pull request.
#
#   bash scripts/upstream/make_branch.sh PATH_TO_CHECKOUT [--branch mezo-trainer] [--base REV] [--dry_run]
#
# A few seconds. Nothing is pushed; the checkout's files and its other branches stay as they are. docs/upstream_pr.md
# is the guide.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
help_if_asked "${BASH_SOURCE[0]}" "$@"
use_python
exec "$PY" "$ROOT/scripts/upstream/make_branch.py" "$@"
