#!/usr/bin/env bash
# ImageReward of every image of a set, in the environment of launch/rewards/imagereward.sh: launch/eval/imagereward.sh SET [--set device=cuda:0 ...],
# or --setup-only
HTGRPO_SCORE=1 exec "$(dirname "${BASH_SOURCE[0]}")/../rewards/imagereward.sh" "$@"
