"""A stub of the Python that makes a reward's environment."""

from helpers.paths import ROOT

FOLDER = ROOT / "launch" / "rewards"
# Replaces the interpreter that makes the environment and the one in it; it records its arguments in $CALLS.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit
echo "$*" >>"$CALLS"
[[ $3 == --clear ]] && rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
[[ $3 == install && $* == *"$BROKEN"* ]] && echo "ERROR: no such package" && exit 1
printf '#!/usr/bin/env bash\\necho "$@"\\n' >"$(dirname "$0")/htgrpo" && chmod +x "$(dirname "$0")/htgrpo"
"""
