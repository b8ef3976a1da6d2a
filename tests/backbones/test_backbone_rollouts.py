"""Rollout and scoring with the real layouts: shared rows, positions of the head, and the effect of batching."""

import pytest
import torch

from helpers.paths import CONFIGS
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.llada.backbone import ImageBlock
from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone
from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import Judged, policy_objective
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import SAMPLERS
from htgrpo_ext.core.views import Update, View
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import RolloutSettings
from htgrpo_ext.train.scoring import plan_updates, score_micro_batches

TEXTS = ["a photo of a red cat", "two dog beside the round green bench , a photo"]
P, G, T = 2, 3, 3
B = P * G


@pytest.fixture(scope="module", params=["mmada", "lumina"])
def backbone(request, mmada_folder, lumina_folder):
    """In float64: in float32 a batch of another size rounds otherwise, which now and then decides a draw."""
    if request.param == "lumina":
        return LuminaBackbone.load(lumina_folder, prompt_length=40, height=96, width=64, dtype=torch.float64)
    backbone = MMaDABackbone.load(mmada_folder, prompt_length=24, dtype=torch.float64)
    block = backbone.block  # an image of 64 tokens will do
    backbone.block = ImageBlock(block.frame_I[[0, *range(1, 65), -1]], block.slot_N[:64], block.mask_id, block.offset)
    backbone.num_image_tokens = 64
    return backbone


def rollout_of(backbone, sampler="emerge", batch_size=16, texts=TEXTS, first=0):
    """T steps with guidance; returns the rollout, its prompts and the rows that were computed."""
    forward = SharedForward(backbone.image_logits, backbone.mask_id, batch_size)
    prompts = backbone.encode_prompts(texts).repeat(G)
    draws = Draws(7, 0, range(first, first + len(texts)), G)
    fields = dict(prompts_per_cycle=P, rollouts_per_prompt=G, steps=T, guidance=3.5, temperature=1.0)
    rollout = generate(backbone, forward, prompts, draws, RolloutSettings(sampler=sampler, **fields))
    return rollout, prompts, forward


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batch_size_and_other_prompts_change_no_image(backbone, sampler):
    together = rollout_of(backbone, sampler)[0]
    single = rollout_of(backbone, sampler, batch_size=1)[0]
    alone = rollout_of(backbone, sampler, texts=TEXTS[1:], first=1)[0]
    for a, b, c in zip(together[:2], single[:2], alone[:2], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[G:], c)
    assert together.unmask_step_BN.unique().tolist() == list(range(T))
    assert together.codes_BN.min() >= 0 and together.codes_BN.max() < 8192


def test_the_first_step_is_one_row_per_prompt_and_one_without(backbone):
    rows = rollout_of(backbone)[2].rows["rollout"]
    assert rows == (P + 1) + (T - 1) * 2 * B


def test_emerge_computes_each_token_once_with_its_prompt_and_once_without(backbone, monkeypatch):
    asked, policy = [], backbone._policy

    def watched(**inputs):
        output, positions = policy(**inputs), inputs["positions"]
        assert not (positions & (inputs["input_ids"] != backbone.mask_id)).any()
        assert output.logits.shape == (int(positions.sum()), 8192)
        asked.append(len(output.logits))
        return output

    monkeypatch.setattr(backbone, "_policy", watched)
    rollout, N = rollout_of(backbone)[0], backbone.num_image_tokens
    first_BN = rollout.unmask_step_BN == 0
    shared = sum(int(first_BN[p * G : (p + 1) * G].any(0).sum()) for p in range(P))  # a row for all images of a prompt
    assert sum(asked) == N + shared + 2 * int((~first_BN).sum())


def test_the_last_block_may_leave_out_what_is_not_wanted(backbone):
    """Rows of one length and of several, so with and without a mask of pads."""
    N, generator = backbone.num_image_tokens, torch.Generator().manual_seed(0)
    for texts in (TEXTS, TEXTS[:1] * 2):
        prompts = backbone.encode_prompts(texts)
        codes_UN = torch.randint(-1, 8192, (2, N), generator=generator)
        for share in (0.02, 0.2, 0.4):
            wanted_UN = torch.rand(2, N, generator=generator) < share
            wanted_UN[0, 0] = True  # a row may want nothing, but not all of them
            whole = backbone.image_logits(prompts, codes_UN, wanted_UN).detach()
            with torch.no_grad():
                torch.testing.assert_close(
                    backbone.image_logits(prompts, codes_UN, wanted_UN), whole, atol=1e-10, rtol=0
                )


def test_fully_masked_scores_equal_the_bare_models_from_one_row_per_prompt(backbone):
    rollout, prompts, forward = rollout_of(backbone)
    nothing = torch.zeros(B, backbone.num_image_tokens, dtype=torch.bool)
    target = torch.rand(nothing.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    update = Update((View(nothing, target),), torch.ones(nothing.shape), "global")
    with torch.no_grad():
        scores = forward.log_probs(prompts, rollout.codes_BN, [update], "new")[0]
        assert forward.rows["new"] == P
        for b in (0, G, B - 1):
            n = target[b].nonzero()[0, 0]
            ids = torch.cat([prompts.ids_BL[b : b + 1], backbone.block.ids(torch.full((1, nothing.shape[1]), -1))], 1)
            seen = torch.cat([prompts.attention_BL[b : b + 1], torch.ones(1, len(backbone.block.frame_I)).bool()], 1)
            place = prompts.ids_BL.shape[1] + backbone.block.slot_N[n]
            logits = backbone.model(ids[seen][None]).logits[0, place - (~seen).sum()].double()
            offset = backbone.block.offset
            log_probs = logits[offset : offset + 8192].log_softmax(-1)
            assert abs(scores[b, n].item() - log_probs[rollout.codes_BN[b, n]].item()) < 1e-5
    assert (scores[~target] == 0).all()


def test_gradients_reach_adapters_only(lumina_folder):
    lora = {"r": 2, "lora_alpha": 2, "target_modules": r".*\.blocks\.\d+\.(q_proj|ff_out)"}
    backbone = LuminaBackbone.load(lumina_folder, lora, prompt_length=40, height=32, width=32)
    backbone.model.get_base_model().activation_checkpointing = True
    rollout, prompts, forward = rollout_of(backbone)
    nothing = torch.zeros(B, 4, dtype=torch.bool)
    update = Update((View(nothing, ~nothing),), torch.ones(B, 4), "global")
    forward.log_probs(prompts, rollout.codes_BN, [update], "new")[0].sum().backward()
    for name, parameter in backbone.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        if "lora_B" in name:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("method", sorted(f.stem for f in (CONFIGS / "method").glob("*.yaml")))
def test_every_method_scores_and_trains_adapters(lumina_folder, method):
    """Two optimizer steps from settings to weights: ratio 1 before the first, off it after."""
    sets = [f"model.checkpoint={lumina_folder}", "model.height=32", "model.width=48", "model.dtype=float32"]
    sets += ["model.lora.rank=2", "loop.updates_per_rollout=2", "rollout.prompts_per_cycle=2", "rollout.steps=3"]
    sets += ["rollout.rollouts_per_prompt=3", "loop.learning_rate=0.05"]
    sets += ["method.budget={global: 1, structure: 1, refinement: 0}"] if method == "htgrpo" else []
    settings = load_settings([CONFIGS / "model/lumina.yaml", CONFIGS / f"method/{method}.yaml"], sets)
    backbone = load_backbone(settings.model, seed=settings.seed)
    backbone.model.eval()
    forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
    rows, draws = backbone.encode_prompts(TEXTS).repeat(G), Draws(0, 0, range(P), G)
    rollout = generate(backbone, forward, rows, draws, settings.rollout)
    _, updates = plan_updates(settings, rollout, rows, draws)
    scored = score_micro_batches(settings, backbone, forward, rows, rollout.codes_BN, updates)
    optimizer = torch.optim.AdamW([p for p in backbone.model.parameters() if p.requires_grad], lr=0.05)
    ratios = []
    for k in range(2):
        for a, (_, scores) in enumerate(scored):
            index = settings.method.update_index(k, a, 2, 2)
            advantage_B = torch.tensor([1.0, -1.0, 0.5])
            judged = Judged(advantage_B, advantage_B, torch.ones(3, dtype=torch.bool))
            found = policy_objective(scores.of(index), scores.updates[index], judged, 0.2, 0.01)
            found.loss.backward()
            ratios.append(found.ratio_max.item())
        optimizer.step()
        optimizer.zero_grad()
    assert ratios[:2] == pytest.approx([1, 1], abs=1e-5)
    assert max(abs(r - 1) for r in ratios[2:]) > 1e-4
