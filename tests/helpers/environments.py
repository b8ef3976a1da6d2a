"""Stand-ins for the Python that makes a reward's environment."""

from helpers.paths import ROOT

FOLDER = ROOT / "launch" / "rewards"
# Stands for the interpreter that makes the environment and for the one in it; what it is asked goes into calls.
PYTHON = """#!/usr/bin/env bash
[[ $1 == -c ]] && exit
echo "$*" >>"$CALLS"
[[ $3 == --clear ]] && rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
[[ $3 == install && $* == *"$BROKEN"* ]] && echo "ERROR: no such package" && exit 1
printf '#!/usr/bin/env bash\\necho "$@"\\n' >"$(dirname "$0")/htgrpo" && chmod +x "$(dirname "$0")/htgrpo"
"""
