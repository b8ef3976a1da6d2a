#!/usr/bin/env bash
# HPSv3 of every image of a set, in the environment of launch/rewards/hpsv3.sh: launch/eval/hpsv3.sh SET [--set device=cuda:0 ...],
# or --setup-only
HTGRPO_SCORE=1 exec "$(dirname "${BASH_SOURCE[0]}")/../rewards/hpsv3.sh" "$@"
