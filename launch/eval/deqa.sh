#!/usr/bin/env bash
# DeQA-Score of every image of a set, in the environment of launch/rewards/deqa.sh: launch/eval/deqa.sh SET [--set device=cuda:0 ...],
# or --setup-only
HTGRPO_SCORE=1 exec "$(dirname "${BASH_SOURCE[0]}")/../rewards/deqa.sh" "$@"
