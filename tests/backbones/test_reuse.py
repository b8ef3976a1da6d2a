"""Rollouts that reuse keys and values, against a plain loop over images and blocks with a cache of its own.

The reference knows the weights' names and the published equations, and calls no code of the models. N image tokens.
"""

import pytest
import torch
from torch.nn import functional as F

from helpers.llada_checkpoints import lumina_checkpoint, mmada_checkpoint
from htgrpo_ext.backbones.llada.backbone import ImageBlock
from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone
from htgrpo_ext.backbones.micro.backbone import MicroBackbone
from htgrpo_ext.backbones.micro.model import MicroConfig, MicroModel
from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone
from htgrpo_ext.backbones.words.backbone import WordsBackbone
from htgrpo_ext.backbones.words.model import WordsConfig, WordsModel
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.reuse import ReusingDrawing
from htgrpo_ext.core.sampler import MASK, appearance, emerge
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import RolloutSettings

G, T = 2, 6
TEXTS = {
    "micro": ["a red circle", "a blue square left of a green circle"],
    "words": ['the word "cat"', 'the word "river"'],
    "mmada": ["a photo of a red cat", "two dog beside the round green bench , a photo"],
}
TEXTS["lumina"] = TEXTS["mmada"]


def small(model_class, config_class, layers):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return model_class(config_class(hidden_size=32, num_layers=layers, num_heads=2, ffn_size=48))


def backbone_of(name, folder, layers):
    """A random model in float64 whose attention is not flat, so that stale keys matter."""
    if name == "micro":
        backbone = MicroBackbone(small(MicroModel, MicroConfig, layers).double())
    elif name == "words":
        backbone = WordsBackbone(small(WordsModel, WordsConfig, layers).double())
    elif name == "lumina":
        folder = lumina_checkpoint(folder, n_layers=layers, n_kv_heads=2)
        backbone = LuminaBackbone.load(folder, prompt_length=40, height=96, width=64, dtype=torch.float64)
    else:
        backbone = MMaDABackbone.load(mmada_checkpoint(folder, n_layers=layers), prompt_length=24, dtype=torch.float64)
        block = backbone.block  # an image of 40 tokens will do
        backbone.block = ImageBlock(
            block.frame_I[[0, *range(1, 41), -1]], block.slot_N[:40], block.mask_id, block.offset
        )
        backbone.num_image_tokens = 40
    for name, parameter in backbone.model.named_parameters():
        if "q_proj" in name:
            parameter.data.mul_(3)
    backbone.model.eval()
    return backbone


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    made = {}

    def of(name, layers):
        if (name, layers) not in made:
            made[name, layers] = backbone_of(name, tmp_path_factory.mktemp("model"), layers)
        return made[name, layers]

    return of


class Plain:
    """A model as equations: one row, no pads, a list of keys and values per block."""

    def __init__(self, name, backbone):
        self.llada, self.backbone, model = name in ("mmada", "lumina"), backbone, backbone.model
        self.name, config = name, backbone.config
        if self.llada:
            inner = model.model["transformer"]
            self.embedding, self.blocks, self.norm = inner["wte"].weight, inner["blocks"], inner["ln_f"].weight
            offset = backbone.block.offset
            self.head, self.heads, self.eps = inner["ff_out"].weight[offset : offset + 8192], config.n_heads, 1e-5
        else:
            self.embedding, self.blocks, self.norm = model.embedding.weight, model.blocks, model.norm.weight
            self.head, self.heads, self.eps = model.lm_head.weight, config.num_heads, 1e-6

    def sequence(self, prompts, codes_N):
        """Ids [S], half angles [S, D/2] and the places [N] of the image's tokens, pads left out."""
        ids_L, seen_L = prompts.ids_BL[0], prompts.attention_BL[0]
        config = self.backbone.config
        if self.llada:
            block_I, slot_N = self.backbone.block.ids(codes_N[None])[0], self.backbone.block.slot_N
            place = torch.arange(len(ids_L) + len(block_I))
            place = torch.cat([place[: len(ids_L)][seen_L], place[len(ids_L) :]])
            if self.name == "lumina":  # counts from the prompt's own first token
                place = torch.arange(len(place))
            width = config.d_model // config.n_heads
            angle_SD = place[:, None].float() / config.rope_theta ** (torch.arange(0, width, 2).float() / width)
        else:
            block_I = torch.where(codes_N == MASK, config.mask_id, codes_N + config.image_offset)
            slot_N = torch.arange(len(codes_N))
            row_S, column_S = config.positions().unbind(1)
            quarter = config.hidden_size // config.num_heads // 4
            frequency = 100.0 ** (-torch.arange(quarter) / quarter)
            angle_SD = torch.cat([row_S[:, None] * frequency, column_S[:, None] * frequency], dim=1)
            angle_SD = torch.cat([angle_SD[: len(ids_L)][seen_L], angle_SD[len(ids_L) :]])
        return torch.cat([ids_L[seen_L], block_I]), angle_SD.double(), int(seen_L.sum()) + slot_N

    def rms(self, x, weight):
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * weight

    def turned(self, x_SD, angle_SD, heads):
        """Each pair (i, i + D/2) of a head as a complex number."""
        half = x_SD.view(len(x_SD), heads, 2, -1)
        turned = torch.complex(half[:, :, 0], half[:, :, 1]) * torch.polar(torch.ones_like(angle_SD), angle_SD)[:, None]
        return torch.cat([turned.real, turned.imag], dim=-1)

    def run(self, prompts, codes_N, cache, computed):
        """Logits [len(computed), V] at those tokens. A `cache` that is empty is filled, and all is computed."""
        ids_S, angle_SD, place_N = self.sequence(prompts, codes_N)
        fill = not cache
        at = torch.arange(len(ids_S)) if fill else place_N[computed]
        x = self.embedding[ids_S[at]]
        for number, block in enumerate(self.blocks):
            h = self.rms(x, block.attn_norm.weight)
            q = self.turned(h @ block.q_proj.weight.T, angle_SD[at], self.heads)
            kv_heads = len(block.k_proj.weight) // (len(block.q_proj.weight) // self.heads)
            k = self.turned(h @ block.k_proj.weight.T, angle_SD[at], kv_heads)
            v = (h @ block.v_proj.weight.T).view(len(at), kv_heads, -1)
            if fill:
                cache.append((k, v))
            else:
                k, v = (kept.clone().index_copy(0, at, new) for kept, new in zip(cache[number], (k, v), strict=True))
            attended = []
            for head in range(self.heads):
                own = head * kv_heads // self.heads
                law = (q[:, head] @ k[:, own].T / q.shape[-1] ** 0.5).softmax(-1)
                attended.append(law @ v[:, own])
            x = x + torch.cat(attended, dim=-1) @ block.attn_out.weight.T
            h = self.rms(x, block.ff_norm.weight)
            x = x + (F.silu(h @ block.ff_proj.weight.T) * (h @ block.up_proj.weight.T)) @ block.ff_out.weight.T
        out = self.rms(x, self.norm) @ self.head.T
        return out[place_N[computed]] if fill else out


@torch.no_grad()
def plain_rollout(plain, prompts, nobody, noise, settings, refresh):
    """Image after image, step after step: codes [B, N] and entropies [B, N]."""
    B, N = len(prompts.ids_BL), plain.backbone.num_image_tokens
    appears_BN, noise_BN = appearance(noise, (B, N), settings.steps)
    codes_BN, entropy_BN = torch.full((B, N), MASK), torch.zeros(B, N, dtype=torch.float64)
    begin, end = settings.guidance_interval or (0, 1)
    for b in range(B):
        caches, changed, periods = {}, {}, {}
        for step in range(settings.steps):
            now = (appears_BN[b] == step).nonzero()[:, 0].tolist()
            if not now:
                continue
            guided = settings.guidance > 0 and begin <= step / settings.steps < end
            found = {}
            for name, row in (("prompt", prompts.rows(slice(b, b + 1))), *([("nobody", nobody)] if guided else [])):
                if periods.get(name) != step // refresh:
                    periods[name], caches[name], changed[name] = step // refresh, [], set()
                computed = sorted({*changed[name], *now})
                logits = plain.run(row, codes_BN[b], caches[name], torch.tensor(computed))
                found[name] = logits[[computed.index(n) for n in now]]
                changed[name] |= set(now)
            logits = found["prompt"]
            if guided:
                logits = logits + settings.guidance * (logits - found["nobody"])
            for n, law in zip(now, logits.softmax(-1), strict=True):
                codes_BN[b, n] = int((law.cumsum(0) <= noise_BN[b, n] * law.sum()).sum())
                entropy_BN[b, n] = -(law * law.log()).sum()
    return codes_BN, entropy_BN


def settings_of(**more):
    fields = dict(prompts_per_cycle=2, rollouts_per_prompt=G, sampler="emerge", steps=T, guidance=0.0, temperature=1.0)
    return RolloutSettings(**fields | more)


def rolled_out(backbone, texts, settings, refresh, batch_size=64):
    """The rollout, the prompts, their noise and the forward."""
    forward = SharedForward(backbone.image_logits, backbone.mask_id, batch_size)
    prompts, draws = backbone.encode_prompts(texts).repeat(G), Draws(5, 0, range(len(texts)), G)
    rollout = generate(backbone, forward, prompts, draws, settings, refresh)
    tokens = backbone.num_image_tokens
    return rollout, prompts, lambda step: draws.uniform("rollout", step, shape=(2, tokens)), forward


@pytest.mark.parametrize("guidance, interval", [(0.0, None), (2.0, None), (2.0, (0.3, 0.8))])
@pytest.mark.parametrize("name, refresh", [("micro", 2), ("words", 4), ("mmada", 3), ("lumina", 2)])
def test_rollouts_are_those_of_a_plain_loop_with_a_cache(backbones, name, refresh, guidance, interval):
    """Rows share a forward, images have batches of any size, a period may begin without guidance: no matter."""
    backbone, settings = backbones(name, 2), settings_of(guidance=guidance, guidance_interval=interval)
    rollout, prompts, noise, _ = rolled_out(backbone, TEXTS[name], settings, refresh)
    plain = Plain(name, backbone)
    codes_BN, entropy_BN = plain_rollout(plain, prompts, backbone.unconditional(), noise, settings, refresh)
    assert torch.equal(rollout.codes_BN, codes_BN)
    torch.testing.assert_close(rollout.entropy_BN.double(), entropy_BN, atol=2e-5, rtol=0)
    single = rolled_out(backbone, TEXTS[name], settings, refresh, batch_size=3)[0]
    assert torch.equal(single.codes_BN, codes_BN) and torch.equal(single.unmask_step_BN, rollout.unmask_step_BN)
    torch.testing.assert_close(single.entropy_BN, rollout.entropy_BN, atol=2e-5, rtol=0)
    exact = rolled_out(backbone, TEXTS[name], settings, 1)[0]
    assert (exact.entropy_BN - rollout.entropy_BN).abs().max() > 1e-3  # and it is not exact


@pytest.mark.parametrize("name", ["micro", "words"])
def test_with_one_block_reuse_is_exact(backbones, name):
    """Its keys and values are of the input alone, so those of unchanged tokens are never out of date."""
    backbone, settings = backbones(name, 1), settings_of(guidance=2.0)
    exact = rolled_out(backbone, TEXTS[name], settings, 1)[0]
    for refresh in (2, T):
        reused, *_, forward = rolled_out(backbone, TEXTS[name], settings, refresh)
        assert torch.equal(reused.codes_BN, exact.codes_BN) and forward.rows["reused"]
        torch.testing.assert_close(reused.entropy_BN, exact.entropy_BN, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_step_refreshed_is_exact_bit_for_bit(checkpoint):
    """In float32: `refresh: 1`, and the drawing that reuses, made to do so."""
    backbone, settings = MicroBackbone.load(checkpoint), settings_of(guidance=1.0)
    exact, prompts, noise, forward = rolled_out(backbone, TEXTS["micro"], settings, 1)
    named = settings_of(guidance=1.0, reuse={"refresh": 1})
    drawing = ReusingDrawing(forward, prompts, backbone.unconditional(), 1.0, named.guided_steps, 64, 1)
    again = emerge(drawing, noise, (2 * G, 64), T)
    for ours in (rolled_out(backbone, TEXTS["micro"], named, named.refresh)[0], again):
        assert all(map(torch.equal, ours, exact))
    assert "reused" not in forward.rows


@torch.no_grad()
def test_a_step_between_computes_what_appears_and_what_was_drawn_since(backbones, monkeypatch):
    """And each row in four steps of six; the first is a row a prompt, and one without."""
    backbone, policy, counts = backbones("micro", 2), backbones("micro", 2)._policy, []

    def watched(**inputs):
        computed = inputs["computed"]
        counts.append(None if computed is None else computed.sum(-1).tolist())
        return policy(**inputs)

    monkeypatch.setattr(backbone, "_policy", watched)
    rollout, *_, forward = rolled_out(backbone, TEXTS["micro"], settings_of(guidance=1.0), 3)
    step_BN, B = rollout.unmask_step_BN, 2 * G
    appeared = [(step_BN == t).sum(1) for t in range(T)]
    assert min(int(count.min()) for count in appeared) > 0  # else an image would have no row in a step
    assert forward.rows["rollout"] == 2 + 1 + 2 * B and forward.rows["reused"] == 4 * 2 * B
    expected = [appeared[0] + appeared[1], appeared[0] + appeared[1] + appeared[2]]
    expected += [appeared[3] + appeared[4], appeared[3] + appeared[4] + appeared[5]]
    assert [sorted(c) for c in counts if c] == [sorted(c.tolist() * 2) for c in expected]
