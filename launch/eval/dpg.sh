#!/usr/bin/env bash
# DPG-Bench's own script, in an environment of its own: launch/eval/dpg.sh SET [--set processes=8 ...], or --setup-only
#
# mPLUG comes from ModelScope at the first start (damo/mplug_visual-question-answering_coco_large_en). Without GitHub set
# DPG_URL=/mirror/of/TencentQQGYLab/ELLA.
source "$(dirname "${BASH_SOURCE[0]}")/official.sh"

requirements=(
    torch==2.1.2 torchvision==0.16.2 torchaudio==2.1.2 numpy==1.26.4 # as in geneval.sh
    accelerate==1.4.0 pandas==2.2.3 pillow==10.4.0 tqdm
    modelscope==1.20.1 transformers==4.46.0 setuptools==80.9.0 # modelscope imports pkg_resources, which later ones drop
    # What modelscope's questions about pictures import, though they use little of it.
    addict==2.4.0 datasets==3.0.1 decord==0.6.0 einops==0.8.0 ftfy==6.2.3 librosa==0.10.1 opencv-python-headless==4.10.0.84
    oss2==2.19.1 rapidfuzz scipy==1.13.1 simplejson sortedcontainers timm==0.9.16 unicodedata2 zhconv
    # Of fairseq, which is installed without its dependencies: it pins versions that exclude each other.
    bitarray cffi cython hydra-core==1.3.2 omegaconf==2.3.0 regex sacrebleu==2.4.3
)
imports=(modelscope.preprocessors.multi_modal modelscope.models.multi_modal.mplug_for_all_tasks)

checkout dpg "${DPG_URL:-https://github.com/TencentQQGYLab/ELLA}" 3c228f1dc6c4d3cad0a47493816151a419f14db3
environment dpg "${requirements[@]}" -- fairseq==0.12.2 rouge-score==0.0.4
options=()
score dpg "$@"
