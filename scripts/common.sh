# Sourced by the scripts of this folder: ROOT (this checkout), help_if_asked, and use_python, which sets PY.
#
# PY is the Python that runs this checkout's code: the current one when `llava` imports there from this very
# checkout (after `pip install -e .` in an environment of yours), otherwise .venv in the checkout, made on first use.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PYTHONPATH="$ROOT" # this checkout's code comes first, whatever else is installed
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
# How long a thread spins before it waits: the usual 300,000 make steps ten times slower where other programs run too.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"

fail() {
    echo "error: $*" >&2
    exit 2
}

# If one of the further words is -h or --help, ends with the comment that script $1 begins with, and file $HELP.
help_if_asked() {
    local script=$1 word
    shift
    for word in "$@"; do
        case $word in
        -h | --help)
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
            [ -z "${HELP:-}" ] || printf '\n%s\n' "$(cat "$HELP")"
            exit 0
            ;;
        esac
    done
}

# A Python >= 3.10 on this machine: $PYTHON if set, else python3 or python.
find_python() {
    local name found
    for name in ${PYTHON:+"$PYTHON"} python3 python; do
        if command -v "$name" > /dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
            found=$(command -v "$name")
            case $found in /*) echo "$found" ;; *) echo "$PWD/$found" ;; esac
            return
        fi
    done
    fail "no Python >= 3.10 found: install one, or set PYTHON to its path"
}

# Whether `llava` is installed in Python $1, from this checkout, with what it needs; for $2 = dev the tests' needs too.
runs_this_checkout() {
    (cd / && env -u PYTHONPATH "$1" - "$ROOT" "${2:-}" > /dev/null 2>&1) << 'EOF'
import os, sys
import llava, torch, transformers, accelerate, numba
if sys.argv[2] == "dev":
    import hypothesis, mypy, pytest, xdist
sys.exit(os.path.realpath(os.path.dirname(llava.__file__)) != os.path.join(os.path.realpath(sys.argv[1]), "llava"))
EOF
}

# Sets PY, a Python that can run this checkout or, with the argument dev, its tests.
use_python() {
    local extra="${1:-}" base
    base=$(find_python)
    if runs_this_checkout "$base" "$extra"; then
        PY=$base
        return
    fi
    PY="$ROOT/.venv/bin/python"
    is_set_up "$extra" && return
    mkdir -p "$ROOT/.venv"
    (
        ! command -v flock > /dev/null || flock 9 # a second script that starts meanwhile waits for the first
        is_set_up "$extra" || set_up "$base" "$extra"
    ) 9> "$ROOT/.venv/lock" || exit
}

# Whether .venv has what pyproject.toml and the constraints ask for now, and extra $1.
# Its stamp holds a hash of what was installed, so that changed requirements are installed too.
is_set_up() {
    local wanted found
    wanted=$(requirements)
    found=$(cat "$ROOT/.venv/installed" 2> /dev/null || true)
    [ -x "$PY" ] && { [ "$found" = "$wanted dev" ] || [ "$found" = "$wanted $1" ]; }
}

# A hash of what is asked for.
requirements() {
    cat "$ROOT/pyproject.toml" "$ROOT/scripts/constraints.txt" | cksum
}

# Makes or updates .venv with the Python $1 and extra $2.
set_up() {
    echo "Setting up $ROOT/.venv (once; takes a few minutes) ..." >&2
    [ -x "$PY" ] || "$1" -m venv "$ROOT/.venv" || fail "'$1 -m venv' failed: is the venv module installed?"
    "$PY" -m pip install --quiet --disable-pip-version-check -c "$ROOT/scripts/constraints.txt" \
        -e "$ROOT${2:+[$2]}" >&2 ||
        fail "installing the dependencies failed: see above (is there a network or a package mirror?)"
    echo "$(requirements) $2" > "$ROOT/.venv/installed"
}
