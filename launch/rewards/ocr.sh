#!/usr/bin/env bash
# RapidOCR in an environment of its own: launch/rewards/ocr.sh --port 18094 [--set threads=4 ...], or --setup-only. It
# serves the rewards ocr and ocr-exact, on the CPU.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# With the versions of constraints.txt. rapidocr-onnxruntime alone, because it requires opencv-python, which needs a
# display's libraries; the headless build is the same module without windows.
imports=(rapidocr_onnxruntime)
environment ocr onnxruntime opencv-python-headless pyclipper shapely six tqdm -- rapidocr-onnxruntime
serve ocr "$@"
