#!/usr/bin/env bash
# UniPercept of every image of a set, in the environment of launch/rewards/unipercept.sh: launch/eval/unipercept.sh SET [--set device=cuda:0 ...],
# or --setup-only
HTGRPO_SCORE=1 exec "$(dirname "${BASH_SOURCE[0]}")/../rewards/unipercept.sh" "$@"
