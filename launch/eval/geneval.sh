#!/usr/bin/env bash
# GenEval's own script, in an environment of its own: launch/eval/geneval.sh SET [--again ...], or --setup-only
#
# It needs a GPU, and to build mmcv's kernels for it the CUDA toolkit 12.1 (nvcc; CUDA_HOME). Without GitHub and
# OpenMMLab set GENEVAL_URL=/mirror/of/djghosh13/geneval, GENEVAL_DETECTOR=FILE.pth and GENEVAL_DOG=FILE.jpg.
source "$(dirname "${BASH_SOURCE[0]}")/official.sh"

detector=mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco
requirements=(
    torch==2.1.2 torchvision==0.16.2 numpy==1.26.4 # the newest with which mmcv 1.7 is known to build, for Hopper too
    mmdet==2.28.2                                  # the last one of mmcv 1.x; GenEval's authors have 2.27
    open_clip_torch==2.24.0 clip-benchmark==1.6.1 pandas==2.2.3 transformers==4.36.1
    addict==2.4.0 opencv-python-headless==4.10.0.84 yapf==0.40.1 # mmcv's; it calls yapf as later ones do not allow
    setuptools==69.5.1 wheel==0.43.0 ninja==1.11.1.1 # mmcv imports pkg_resources, which later ones drop
)
imports=(mmcv.ops mmdet.apis open_clip clip_benchmark.metrics.zeroshot_classification)

extras() { # mmcv is compiled for this machine: a wheel for another GPU fails there, or finds nothing
    MMCV_WITH_OPS=1 install "$1" --no-build-isolation --no-deps mmcv-full==1.7.2
}

checkout geneval "${GENEVAL_URL:-https://github.com/djghosh13/geneval}" af4902f24d3ca90ebbb446dd9891a59e0f82725f
environment geneval "${requirements[@]}"
file "$ENVIRONMENTS/geneval-models/dog.jpg" \
    https://raw.githubusercontent.com/TencentQQGYLab/ELLA/3c228f1dc6c4d3cad0a47493816151a419f14db3/assets/emma/emma_b.jpg \
    f918179759029d433195382314bc1d63521e0df367fd9a31372743f6f243c10f GENEVAL_DOG
file "$ENVIRONMENTS/geneval-models/$detector.pth" \
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/$detector/${detector}_20220504_001756-743b7d99.pth" \
    743b7d99 GENEVAL_DETECTOR
options=(--set "models=$ENVIRONMENTS/geneval-models")
score geneval "$@"
