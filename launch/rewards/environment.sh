# shellcheck shell=bash
# Sourced by the scripts in this folder, each of which serves one heavy reward from a virtual environment of its own:
#
#     imports=(MODULE...)
#     environment NAME REQUIREMENT... [-- REQUIREMENT...]
#     serve NAME "$@"
#
# `environment` makes .venv-rewards/NAME once, and anew when the list changes. Requirements after `--` are installed without
# their dependencies. A requirement without a version has that of constraints.txt. At last the `imports` are imported. `serve`
# runs `htgrpo serve-reward NAME "$@"`, or exits if the only argument is --setup-only. With HTGRPO_SCORE=1 it runs
# `htgrpo eval score --scorer NAME "$@"` instead: launch/eval/*.sh. A function `extras FOLDER` is called, if there is one,
# when the requirements are installed.
#
#     HTGRPO_REWARD_ENVIRONMENTS   another folder for the environments
#     PYTHON                       Python 3.11 or newer; if unset, the first one found
#     TORCH_INDEX                  an index to find PyTorch in besides PyPI, as in the Makefile

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
ENVIRONMENTS=${HTGRPO_REWARD_ENVIRONMENTS:-$ROOT/.venv-rewards}
# What a server needs. With numpy and torch in it, a script must name another version of them to get one.
SERVING=(torch numpy pillow safetensors pydantic pyyaml typer rich fastapi uvicorn prometheus-client)
CONSTRAINTS=$ROOT/constraints.txt
PYTHONS="python3.11 python3.12 python3.13 python3" PYTHON_FITS="sys.version_info >= (3, 11)" PYTHON_NAME="3.11 or newer"
PROJECT=(-e "$ROOT")

fail() {
    echo "error: $*" >&2
    exit 2
}

find_python() {
    local python
    for python in ${PYTHON:-$PYTHONS}; do
        if "$python" -c "import sys; sys.exit(not $PYTHON_FITS)" 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "no Python $PYTHON_NAME found (PYTHON=/path/to/python)"
}

# constraints REQUIREMENT...: constraints.txt without the packages that have a version here.
constraints() {
    printf '%s\n' "$@" | awk '
        function name(text) { sub(/[][<>=!~;@ ].*/, "", text); gsub(/[_.]/, "-", text); return tolower(text) }
        NR == FNR { if (/[<>=!~@]/) given[name($0)] = 1; next }
        !(name($0) in given)' - "$CONSTRAINTS"
}

environment() {
    local name=$1 module
    shift
    local folder=$ENVIRONMENTS/$name log=$ENVIRONMENTS/$name.log list alone=() with=() python torch
    list=$(printf '%s\n' "${SERVING[@]}" "$@")
    [[ -f $folder/.ready && $(<"$folder/.ready") == "$list" ]] && return
    while (($#)) && [[ $1 != -- ]]; do
        with+=("$1")
        shift
    done
    alone=("${@:2}")
    torch=torch
    for module in "${with[@]}"; do
        [[ $module == torch[=\<\>]* ]] && torch=$module
    done
    python=$(find_python)
    mkdir -p "$ENVIRONMENTS" || fail "cannot write $ENVIRONMENTS (HTGRPO_REWARD_ENVIRONMENTS)"
    echo "setting up $folder with $python; this takes some minutes, once" >&2
    if ! {
        "$python" -m venv --clear "$folder" &&
            constraints "${with[@]}" "${alone[@]}" >"$folder/constraints.txt" &&
            install "$folder" --no-deps "$torch" && # first, else pip may try every release of torch
            install "$folder" "${SERVING[@]}" "${with[@]}" &&
            { ((${#alone[@]} + ${#PROJECT[@]} == 0)) || install "$folder" --no-deps "${alone[@]}" "${PROJECT[@]}"; } &&
            { [[ $(type -t extras) != function ]] || extras "$folder"; }
    } >"$log" 2>&1; then
        fail "$name: no environment: $(grep -i '^error' "$log" | tail -1 || true) ($log)"
    fi
    for module in "${imports[@]}"; do
        "$folder/bin/python" -c "import $module" >>"$log" 2>&1 ||
            fail "$name: $module cannot be imported beside torch $(torch_version "$folder"): $(tail -1 "$log") ($log)." \
                "If torchvision is of another build than torch, set TORCH_INDEX to the index that has both"
    done
    echo "$list" >"$folder/.ready"
}

torch_version() {
    "$1/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || echo "(none)"
}

install() {
    local folder=$1
    shift
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c "$folder/constraints.txt" \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$@"
}

serve() {
    local name=$1
    shift
    [[ $* == --setup-only ]] && exit
    [[ ${HTGRPO_SCORE:-} ]] && exec "$ENVIRONMENTS/$name/bin/htgrpo" eval score --scorer "$name" "$@"
    exec "$ENVIRONMENTS/$name/bin/htgrpo" serve-reward "$name" "$@"
}
