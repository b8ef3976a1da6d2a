"""GenEval as a reward: a detector and a colour classifier check what the prompt asks for.

    geneval          partial credit with exact counts, in [0, 1]
    geneval-strict   1 where the benchmark's rule calls the image correct, else 0

This is not the benchmark. Rule (`htgrpo_ext.rewards.geneval`) and architecture (Mask2Former, Swin-S, COCO instances;
colours by CLIP ViT-L/14) are GenEval's, but the detector is the checkpoint that transformers can read, not
MMDetection's, whose environment (mmcv 1, mmdet 2) fails on newer GPUs, often by finding nothing. Train on this reward,
and take numbers to publish from GenEval's own script.

A broken detector that finds nothing gives the scores of empty images. So loading refuses a checkpoint with missing
weights or other classes, and a device whose numbers differ from the CPU's; an image with logits that are not finite has
no score; and a warning is logged while most images seem empty.

Images are resized and mask logits enlarged as in MMDetection, to 800 pixels on the short side. The post-processing of
transformers assumes 384 x 384, which loses small objects.

B images of one size H x W, h x w where the model sees them, Q queries, C classes, D detections.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import levels_image
from htgrpo_ext.rewards.geneval import CLASSES, COLORS, THRESHOLD, Detection, check, judge, objects
from htgrpo_ext.rewards.openclip import OpenClip

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32  # pixels: the short side, the most of a long one; padded to multiples
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, in levels
BATCH = 8  # most images of one size in a forward
KNOWN_LABELS = {0: "person", 15: "cat", 46: "banana", 79: "toothbrush"}  # spelt alike in every list of COCO's 80
BACKGROUND = "#999"  # grey, around an object whose colour is classified
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
WATCHED, EMPTY = 200, 0.9  # a warning is logged when this share of so many images has no object

log = logging.getLogger(__name__)


class Scorer:
    """Both rewards; both models are on `device`.

    detector       a Mask2Former checkpoint for COCO instances: a Hugging Face name, or a folder
    color_model, color_weights  of CLIP, as `model` and `weights` of the scorer `clip`

    Raises UserError if a package or a checkpoint is missing or unsuitable.
    """

    rewards = ("geneval", "geneval-strict")

    def __init__(
        self,
        device: torch.device,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        color_model: str = "ViT-L-14-quickgelu",
        color_weights: str = "openai",
    ):
        # Both are loaded now, so that a missing package is found at the start, not at the first prompt with a colour.
        self.colors = ColorClassifier(OpenClip(device, color_model, color_weights, "float32"))
        self.detector = Detector(device, detector)
        self._empty: deque[bool] = deque(maxlen=WATCHED)

    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py. Raises ValueError for a prompt without GenEval's metadata."""
        for prompt in prompts:
            check(prompt)
        seen = self.detector.detect(images)
        scores: dict[str, list[float]] = {name: [] for name in self.rewards}
        for prompt, image, detections in zip(prompts, images, seen, strict=True):
            if detections is None:
                partial = correct = float("nan")
            else:
                found = objects(detections, prompt["tag"])
                verdict = judge(prompt, found, lambda name, things, image=image: self.colors(image, name, things))
                partial, correct = verdict.partial, float(verdict.correct)
            scores["geneval"].append(partial)
            scores["geneval-strict"].append(correct)
        self._watch(seen)
        return scores

    def _watch(self, seen: Sequence[list[Detection] | None]) -> None:
        """Warn, once per window of images, when nearly all of them are empty."""
        self._empty.extend(not detections for detections in seen)
        if len(self._empty) == WATCHED and sum(self._empty) >= EMPTY * WATCHED:
            log.warning("geneval: no object in %d of the last %d images", sum(self._empty), WATCHED)
            self._empty.clear()


class Detector:
    """Mask2Former with the scores, masks and boxes of MMDetection's head. Raises UserError."""

    def __init__(self, device: torch.device, checkpoint: str):
        try:
            import scipy  # noqa: F401 (for Mask2Former's loss, which transformers builds with the model)
            from transformers import Mask2FormerForUniversalSegmentation
        except ImportError as error:
            raise UserError(f"reward geneval needs {error.name} (pip install 'htgrpo-ext[geneval]')") from None
        try:
            loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{checkpoint}: no Mask2Former checkpoint ({one_line(error)})") from None
        self.model, report = loaded
        if missing := report["missing_keys"] or report["mismatched_keys"]:
            raise UserError(
                f"{checkpoint}: no Mask2Former checkpoint ({len(missing)} weights missing: {missing[0]}, ..)"
            )
        labels = self.model.config.id2label
        if len(labels) != len(CLASSES) or any(labels[i] != name for i, name in KNOWN_LABELS.items()):
            raise UserError(
                f"{checkpoint}: its {len(labels)} classes are not COCO's 80 (a checkpoint for COCO instances)"
            )
        self.device, self.short_side = device, SHORT_SIDE
        self._to_device(checkpoint)

    def _to_device(self, checkpoint: str) -> None:
        """Move the model. Raises UserError unless it computes the same there as on the CPU."""
        ramp = torch.linspace(-2, 2, 128)
        picture_13hw = torch.stack([ramp.expand(128, 128), ramp.expand(128, 128).T, ramp.flip(0).expand(128, 128)])[
            None
        ]
        self.model.eval().requires_grad_(False)
        expected_QC = self.model(picture_13hw).class_queries_logits[0]
        self.model.to(self.device)
        found_QC = self.model(picture_13hw.to(self.device)).class_queries_logits[0].cpu()
        error_Q = (found_QC - expected_QC).norm(dim=1) / expected_QC.norm(dim=1)
        if not error_Q.median() < 0.05:  # median: rounding may change what a query attends to. NaN fails, too
            raise UserError(
                f"{checkpoint}: {self.device} computes something else than the CPU; no score would be right"
            )

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[list[Detection] | None]:
        """The objects of each image, uint8 [3, H, W]; None where the model's logits are not finite."""
        seen: list[list[Detection] | None] = [None] * len(images)
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault((image.shape[1], image.shape[2]), []).append(i)
        for size, places in by_size.items():
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                inputs_B3hw, inner = self.inputs(torch.stack([images[i] for i in part]))
                output = self.model(inputs_B3hw)
                logits = zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
                for i, (class_QC, mask_Qhw) in zip(part, logits, strict=True):
                    padded = (inputs_B3hw.shape[2], inputs_B3hw.shape[3])
                    seen[i] = instances(class_QC, mask_Qhw, padded, inner, size)
        return seen

    def inputs(self, levels_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The model's inputs float32 [B, 3, h, w], padded at the right and below, and their size without padding."""
        H, W = levels_B3HW.shape[2:]
        factor = min(self.short_side / min(H, W), LONG_SIDE / max(H, W))
        inner = (int(H * factor + 0.5), int(W * factor + 0.5))
        pixels_B3hw = F.interpolate(
            levels_B3HW.to(self.device).float(), size=inner, mode="bilinear", antialias=factor < 1
        )
        mean, std = (torch.tensor(value, device=self.device)[:, None, None] for value in (MEAN, STD))
        padding = (0, -inner[1] % DIVISOR, 0, -inner[0] % DIVISOR)
        return F.pad((pixels_B3hw - mean) / std, padding), inner


def instances(
    class_QC: Tensor, mask_Qhw: Tensor, padded: tuple[int, int], inner: tuple[int, int], size: tuple[int, int]
) -> list[Detection] | None:
    """The objects of one image that score above THRESHOLD; None for logits that are not finite.

    class_QC, mask_Qhw   logits; class C-1 is "no object", and masks have a fraction of the model's size
    padded, inner, size  (height, width) of the model's input, of the input without padding, of the image
    """
    if not (class_QC.isfinite().all() and mask_Qhw.isfinite().all()):
        return None
    scores_QC = class_QC.float().softmax(-1)[:, :-1]
    score_D, flat_D = scores_QC.flatten().topk(len(scores_QC))
    flat_D = flat_D[score_D > THRESHOLD]  # the mask's factor, at most 1, can only lower the score
    query_D, label_D = flat_D // scores_QC.shape[1], flat_D % scores_QC.shape[1]
    if len(query_D) == 0:
        return []
    mask_D1hw = F.interpolate(mask_Qhw[query_D][:, None].float(), size=padded, mode="bilinear", align_corners=False)
    mask_D1hw = mask_D1hw[..., : inner[0], : inner[1]]
    logit_DHW = F.interpolate(mask_D1hw, size=size, mode="bilinear", align_corners=False)[:, 0]
    inside_DHW = logit_DHW > 0
    sure_D = (logit_DHW.sigmoid() * inside_DHW).sum((1, 2)) / (inside_DHW.sum((1, 2)) + 1e-6)
    found = []
    for label, score, inside_HW in zip(label_D, score_D * sure_D, inside_DHW.cpu(), strict=False):
        if score > THRESHOLD:
            found.append(Detection(CLASSES[label], float(score), bounds(inside_HW), inside_HW))
    return found


def bounds(inside_HW: Tensor) -> tuple[float, float, float, float]:
    """The box around the true pixels; there must be at least one."""
    rows, columns = inside_HW.any(1).nonzero().flatten().tolist(), inside_HW.any(0).nonzero().flatten().tolist()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class ColorClassifier:
    """The colour of objects by CLIP, zero-shot, with GenEval's texts."""

    def __init__(self, clip: OpenClip):
        self.clip = clip
        self._texts: dict[str, Tensor] = {}  # by class, the unit vectors of the colours [10, F]

    def __call__(self, image: Tensor, name: str, things: Sequence[Detection]) -> list[str]:
        """The colour of each object, cut out of the image (uint8 [3, H, W]) and put on grey."""
        picture = levels_image(image)
        grey = Image.new("RGB", picture.size, BACKGROUND)
        masks = [thing.mask_HW for thing in things if thing.mask_HW is not None]
        cut = [Image.composite(picture, grey, Image.fromarray(mask_HW.numpy())) for mask_HW in masks]
        crops = [each.crop(thing.box) for each, thing in zip(cut, things, strict=True)]
        likeness = self.clip.pictures(crops) @ self._text(name).T
        return [COLORS[i] for i in likeness.argmax(-1).tolist()]

    def _text(self, name: str) -> Tensor:
        if name not in self._texts:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            vectors = self.clip.texts(texts).view(len(COLORS), len(TEMPLATES), -1)
            self._texts[name] = F.normalize(vectors.mean(1), dim=-1)
        return self._texts[name]
