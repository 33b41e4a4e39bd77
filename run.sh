#!/usr/bin/env bash
# The way in: ./run.sh vppo trains, ./run.sh test tests, ./run.sh help lists the rest. At first use it
# builds .venv beside this file, and again when requirements*.txt or pyproject.toml change. Keeps to bash 3.2 (macOS).
set -eu

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
VENV=$ROOT/.venv
STAMP=$VENV/.installed
GPU_STAMP=$VENV/.installed-gpu
LOG=$ROOT/.venv.log

# An active environment must not leak into ours.
if [ -n "${VIRTUAL_ENV:-}" ]; then
    PATH=$(printf '%s' ":$PATH:" | sed "s|:$VIRTUAL_ENV/bin:|:|; s|^:||; s|:\$||")
    unset VIRTUAL_ENV
fi
unset PYTHONHOME PYTHONPATH

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 2; }

methods() { # names of the method files
    for file in "$ROOT"/methods/*.py; do
        name=$(basename "$file" .py)
        case $name in _*|'*') ;; *) printf '%s\n' "$name" ;; esac
    done
}

first_line() { # of the docstring of file $1
    sed -n '1,5s/^[rR]*"""\(.*\)$/\1/p' "$1" | sed -n '1s/"""$//;1p'
}

help() {
    echo "./run.sh METHOD [options]   train; every option: ./run.sh METHOD --help"
    for name in $(methods); do
        printf '  %-10s %s\n' "$name" "$(first_line "$ROOT/methods/$name.py")"
    done
    echo
    echo "./run.sh test [options]     ruff and the tests; options go to pytest"
    echo "./run.sh eval               a model, or answers of one, on benchmarks and held-out questions"
    echo "./run.sh compare A B ...    train methods under one budget over several seeds, and compare"
    echo "./run.sh bench              seconds per training step"
    echo "./run.sh bench_scaling      how seconds and memory of a step grow"
    echo "./run.sh profile_step       where a step's seconds go"
    echo "./run.sh help               this text"
}

find_python() { # sets PYTHON to a Python 3.11 or newer that can make environments
    for name in python3.13 python3.12 python3.11 python3; do
        PYTHON=$(command -v "$name" 2>/dev/null) || continue
        if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null && return 0
            die "$PYTHON cannot make virtual environments; on Debian or Ubuntu:" \
                "apt install $(basename "$PYTHON")-venv"
        fi
    done
    die "SightRL needs Python 3.11 or newer, and none of python3.13, python3.12, python3.11, python3 is one;" \
        "install it with your package manager or from https://www.python.org/downloads."
}

sha256() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }

fingerprint() { # what the environment depends on; the folder too, because it knows where common/ is
    { cat "$ROOT"/requirements*.txt "$ROOT/pyproject.toml"; echo "$ROOT"; } | sha256
}

up_to_date() {
    [ -x "$VENV/bin/python" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$WANTED" ] &&
        "$VENV/bin/python" -c '' 2>/dev/null
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input ${1+"$@"} >>"$LOG" 2>&1 </dev/null; }

build_failed() {
    tail -n 30 "$LOG" >&2
    die "$1 (all of it: $LOG)"
}

build() {
    say "Building the environment in $VENV (once, a few minutes; log: $LOG)"
    : >"$LOG"
    rm -f "$STAMP"
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then # none yet, or half of one
        "$PYTHON" -m venv --clear "$VENV" >>"$LOG" 2>&1 || build_failed "$PYTHON could not make an environment"
    fi
    pip install -r "$ROOT/requirements.txt" || build_failed "installing requirements.txt failed"
    pip install --no-deps --no-build-isolation -e "$ROOT" || build_failed "installing SightRL itself failed"
    printf '%s\n' "$WANTED" >"$STAMP"
    say "Environment ready after $SECONDS s"
}

build_gpu() { # every line on its own: one that fails must not take the others along
    say "Found an NVIDIA GPU: installing requirements-gpu.txt (log: $LOG)"
    sed 's/#.*//; s/[[:space:]]//g; /^$/d' "$ROOT/requirements-gpu.txt" | while read -r line; do
        # flash-attn fetches finished kernels if there are some for this PyTorch; compiling takes an hour.
        if ! FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE pip install --no-deps --no-build-isolation "$line" ||
            ! "$VENV/bin/python" -c "import $(printf '%s' "${line%%=*}" | tr - _)" >>"$LOG" 2>&1; then
            pip uninstall -y "${line%%=*}" || true
            say "warning: $line could not be installed; going on with the slower PyTorch code (see $LOG)"
        fi
    done
    printf '%s\n' "$WANTED" >"$GPU_STAMP"
}

gpu_pending() { [ "$(cat "$GPU_STAMP" 2>/dev/null)" != "$WANTED" ] && nvidia-smi >/dev/null 2>&1; }

ensure_environment() {
    WANTED=$(fingerprint)
    if up_to_date && ! gpu_pending; then return; fi
    find_python
    # One builder at a time. The lock belongs to the open file, so it ends with this process, however it ends.
    exec 9>"$ROOT/.venv.lock"
    "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
        say "Waiting for another ./run.sh that builds the environment ..."
        "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || true # a disk without locks
    }
    up_to_date || build
    if gpu_pending; then build_gpu; fi
    exec 9>&-
}

unknown() {
    known="$(methods | tr '\n' ' ')test eval compare bench bench_scaling profile_step help"
    find_python
    guess=$("$PYTHON" -c 'import difflib, sys
print(*difflib.get_close_matches(sys.argv[1], sys.argv[2:], 2), sep=" or ")' "$1" $known)
    die "there is no command or method '$1'${guess:+; did you mean $guess?} Known: $known"
}

run_tests() {
    cd "$ROOT"
    status=0
    "$VENV/bin/python" -m ruff check --output-format concise . || status=1
    "$VENV/bin/python" -m ruff format --check --quiet . ||
        { status=1; say "the layout of some files differs; mend it with: .venv/bin/python -m ruff format"; }
    HF_HUB_OFFLINE=1 WANDB_MODE=offline "$VENV/bin/python" -m pytest ${1+"$@"} || status=$?
    exit $status
}

command=${1:-help}
if [ $# -gt 0 ]; then shift; fi
case $command in
    help | -h | --help) help; exit 0 ;;
    test) ensure_environment; run_tests ${1+"$@"} ;;
    eval) script=$ROOT/eval/run.py ;;
    compare) script=$ROOT/eval/compare.py ;;
    bench) script=$ROOT/eval/bench_step.py ;;
    bench_scaling | profile_step) script=$ROOT/eval/$command.py ;;
    *[!a-z0-9_]* | _*) unknown "$command" ;;
    *) script=$ROOT/methods/$command.py; [ -f "$script" ] || unknown "$command" ;;
esac
ensure_environment
exec "$VENV/bin/python" "$script" ${1+"$@"}
