#!/usr/bin/env bash
# UnifiedReward of every image of a set, in the environment of launch/rewards/unifiedreward.sh: launch/eval/unifiedreward.sh SET [--set device=cuda:0 ...],
# or --setup-only
HTGRPO_SCORE=1 exec "$(dirname "${BASH_SOURCE[0]}")/../rewards/unifiedreward.sh" "$@"
