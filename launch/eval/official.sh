# shellcheck shell=bash
# Sourced by the scripts of benchmarks with a scorer of their own (geneval.sh, dpg.sh): an environment without this project, and
# a checkout of the authors' code. `htgrpo eval score` runs their script by the Python of this environment.
#
#     HTGRPO_EVAL_ENVIRONMENTS   another folder than .venv-eval
#     PYTHON                     Python 3.9 or 3.10, as old packages need; if unset, the first one found
#     HTGRPO                     the `htgrpo` command; if unset, the one of `make setup`

HTGRPO_REWARD_ENVIRONMENTS=${HTGRPO_EVAL_ENVIRONMENTS:-$(dirname "${BASH_SOURCE[0]}")/../../.venv-eval}
source "$(dirname "${BASH_SOURCE[0]}")/../rewards/environment.sh"
mkdir -p "$ENVIRONMENTS" || fail "cannot write $ENVIRONMENTS (HTGRPO_EVAL_ENVIRONMENTS)"
ENVIRONMENTS=$(cd "$ENVIRONMENTS" && pwd)
SERVING=()
PROJECT=()
CONSTRAINTS=/dev/null
PYTHONS="python3.10 python3.9" PYTHON_FITS="(3, 9) <= sys.version_info < (3, 11)" PYTHON_NAME="3.9 or 3.10"

# checkout NAME URL COMMIT: the authors' code at a commit, in NAME-checkout.
checkout() {
    local folder=$ENVIRONMENTS/$1-checkout url=$2 commit=$3
    [[ -d $folder/.git && $(git -C "$folder" rev-parse HEAD) == "$commit" ]] && return
    echo "fetching $url" >&2
    rm -rf "$folder.new"
    git clone --quiet --no-checkout "$url" "$folder.new" >&2 && git -C "$folder.new" checkout --quiet --detach "$commit" >&2 ||
        fail "$1: no commit $commit from $url (another one: ${1^^}_URL=/path/or/url)"
    rm -rf "$folder"
    mv "$folder.new" "$folder"
}

# file PATH URL SHA256 VARIABLE: a file of this sum, or one whose sum begins so; from VARIABLE's path if that is set.
file() {
    local path=$1 url=$2 sum=$3 given=${!4:-}
    [[ -f $path ]] && return
    mkdir -p "$(dirname "$path")"
    if [[ $given ]]; then
        cp "$given" "$path.new" || fail "$4: cannot read $given"
    else
        echo "fetching $url" >&2
        curl --fail --silent --show-error --location --retry 3 --output "$path.new" "$url" ||
            fail "cannot fetch $url ($4=/path/to/it)"
    fi
    [[ $(sha256sum "$path.new") == "$sum"* ]] || fail "$path.new is not the file that was published at $url"
    mv "$path.new" "$path"
}

# score NAME "$@": `htgrpo eval score` with the environment, unless the only argument is --setup-only.
score() {
    local name=$1 command=${HTGRPO:-$ROOT/.venv/bin/htgrpo}
    shift
    [[ $* == --setup-only ]] && exit
    [[ -x $(command -v "$command") ]] || fail "no $command (make setup, or HTGRPO=/path/to/htgrpo)"
    exec "$command" eval score --scorer "$name" --set "checkout=$ENVIRONMENTS/$name-checkout" \
        --set "python=$ENVIRONMENTS/$name/bin/python" "${options[@]}" "$@"
}
