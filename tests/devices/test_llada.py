"""MMaDA and Lumina-DiMOO, tiny, on an accelerator: a cycle, the checkpoint after it, the decoder, bfloat16."""

import math
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from helpers.llada_runs import settings_of
from helpers.micro_runs import records
from helpers.upstream_stub import Brightness, StubDecoder
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.train import native
from htgrpo_ext.workflow.sample import sample


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """A reward that random images differ in, and a decoder in place of MAGVITv2's 15 s an image."""
    monkeypatch.setattr("htgrpo_ext.rewards.mix.load_scorer", lambda term, device: Brightness())
    monkeypatch.setattr("htgrpo_ext.backbones.mmada.backbone.load_magvit", lambda folder: StubDecoder())


@pytest.fixture
def checkpoints(mmada_folder, lumina_folder):
    return {"mmada": mmada_folder, "lumina": lumina_folder}


@contextmanager
def started(settings, resume=False):
    loop = native.start(settings, resume)
    with loop.run.progress:
        yield loop
    loop.run.log.close()


@pytest.mark.parametrize(
    ("model", "method", "more"),
    [
        ("mmada", "htgrpo", ["model.tuning=lora", "model.dtype=bfloat16"]),
        ("lumina", "tracegrpo", ["model.tuning=lora", "model.dtype=float32"]),
        ("lumina", "maskgrpo", ["model.tuning=full", "model.dtype=float32", "rollout.sampler=maskgit-constant"]),
        ("lumina", "d1", ["model.tuning=full", "model.dtype=bfloat16", "rollout.guidance=0"]),
    ],
    ids=["mmada-lora-bf16", "lumina-lora-fp32", "lumina-full-fp32", "lumina-full-bf16"],
)
def test_a_cycle_and_its_checkpoint(model, method, more, device, checkpoints, tmp_path):
    """Rollout, pixels, scores and updates there; what was saved is what was trained, and is taken up again."""
    settings = settings_of(model, method, checkpoints[model], tmp_path / "run", *more)
    with started(settings) as loop:
        native.train_cycle(loop, 0)
        loop.save()
        trained = {name: p for name, p in loop.backbone.model.named_parameters() if p.requires_grad}
    assert {p.device.type for p in loop.backbone.model.parameters()} == {device}
    updates = records(tmp_path / "run", "update")
    assert len(updates) == 2 and updates[0]["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert all(math.isfinite(value) for u in updates for value in u.values() if isinstance(value, float))
    (file,) = (tmp_path / "run/checkpoints").glob("*/model/*.safetensors")
    assert sum(t.numel() for t in load_file(file).values()) == sum(p.numel() for p in trained.values())
    if model == "lumina":  # the rest is the same for it
        return
    with started(settings, resume=True) as resumed:
        assert resumed.cycles_done == 1
        for name, p in resumed.backbone.model.named_parameters():
            assert not p.requires_grad or torch.equal(p, trained[name])


def test_pictures_are_those_of_the_cpu(on, lumina_folder, tmp_path):
    """`htgrpo sample` with diffusers' VQ model: 12 tokens, unmasked in the same order."""
    settings = settings_of("lumina", "d1", lumina_folder, tmp_path, "model.dtype=float32", "model.height=48")
    for place in ("there", "here"):
        sample(settings, ["a red cat"], 1, 0, tmp_path / place, trace=True)
        on("cpu")
    there, here = ({p.name: p.read_bytes() for p in (tmp_path / at).glob("*.png")} for at in ("there", "here"))
    assert len(there) == 3 and there.keys() == here.keys()
    order = next(name for name in there if name.endswith(".order.png"))
    assert there[order] == here[order]


@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_bfloat16_is_near_float32(model, device, checkpoints, tmp_path):
    """Log-probabilities of all codes at all tokens, nothing visible: apart by 0.02 in the mean, 0.15 at most."""
    logp = {}
    for dtype in ("float32", "bfloat16"):
        settings = settings_of(model, "d1", checkpoints[model], tmp_path, f"model.dtype={dtype}", "model.tuning=full")
        backbone = load_backbone(settings.model, device, frozen=True)
        forward = SharedForward(backbone.image_logits, backbone.mask_id, 1)
        masked_1N = torch.full((1, backbone.num_image_tokens), -1, device=device)
        with torch.no_grad():
            logits = forward.logits(backbone.encode_prompts(["a red cat"]), masked_1N, masked_1N < 0, "rollout").float()
        logp[dtype] = logits.log_softmax(-1).cpu()
    apart = (logp["bfloat16"] - logp["float32"]).abs()
    print(f"{model}: {apart.mean():.4f} in the mean, {apart.max():.4f} at most")
    assert 0 < apart.mean() < 0.02 and apart.max() < 0.15
