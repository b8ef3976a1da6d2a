#!/usr/bin/env bash
# RapidOCR on every image of a set, in the environment of launch/rewards/ocr.sh: launch/eval/ocr.sh SET [--set threads=4 ...],
# or --setup-only
HTGRPO_SCORE=1 exec "$(dirname "${BASH_SOURCE[0]}")/../rewards/ocr.sh" "$@"
