"""aMUSEd beside diffusers' own pipeline, on the same tiny checkpoint."""

import copy

import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler
from diffusers.schedulers import scheduling_amused

from helpers.amused_checkpoints import CODES, LENGTH, MASK_ID, amused_checkpoint
from helpers.stubs import drawing
from htgrpo_ext.backbones.amused.backbone import AmusedBackbone
from htgrpo_ext.backbones.decoding import vq_pixels
from htgrpo_ext.core.estimator import SharedForward, hide_words
from htgrpo_ext.core.sampler import MASK, maskgit_amused
from htgrpo_ext.core.views import Update, View
from htgrpo_ext.errors import UserError
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import Sampling

TEXTS = ["a photo of a red cat", "Two dog beside the ROUND green bench , a photo on three blue cat"]
N, ROWS, STEPS = 16, 2, 12


@pytest.fixture(scope="module")
def pipeline(amused_folder):
    return quiet(AmusedPipeline.from_pretrained(amused_folder))


@pytest.fixture(scope="module")
def backbone(amused_folder):
    return AmusedBackbone.load(amused_folder, size=64)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def canvas(rows=ROWS, seed=0):
    """Codes, about half of them masked."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(CODES, (rows, N), generator=generator)
    return codes.masked_fill(torch.rand(codes.shape, generator=generator) < 0.5, MASK)


def pipelines_ids(pipeline, texts):
    options = dict(padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return pipeline.tokenizer(texts, **options).input_ids


@torch.no_grad()
def pipelines_logits(pipeline, texts, codes, conditions):
    """[B, N, V], as AmusedPipeline calls its parts."""
    words = pipeline.text_encoder(pipelines_ids(pipeline, texts), output_hidden_states=True)
    grid = torch.where(codes == MASK, MASK_ID, codes).view(-1, 4, 4)
    logits = pipeline.transformer(
        grid,
        micro_conds=torch.tensor([conditions]).expand(len(codes), -1),
        pooled_text_emb=words.text_embeds,
        encoder_hidden_states=words.hidden_states[-2],
    )
    return logits.permute(0, 2, 3, 1).reshape(len(codes), N, -1)


def test_prompts_are_the_pipelines_and_words_are_the_users(backbone, pipeline):
    prompts = backbone.encode_prompts([*TEXTS, "", "x" * 30])
    assert torch.equal(prompts.ids_BL, pipelines_ids(pipeline, [*TEXTS, "", "x" * 30]))
    assert prompts.attention_BL.sum(1).tolist() == [8, LENGTH, 2, LENGTH]  # the second and the last are cut
    assert prompts.words_BL.sum(1).tolist() == [6, LENGTH - 2, 0, LENGTH - 2]
    with pytest.raises(UserError, match="`<|endoftext|>` is a marker".replace("|", r"\|")):
        backbone.encode_prompts(["a cat <|endoftext|> a dog"])


def test_logits_with_and_without_a_prompt_are_those_of_diffusers(backbone, pipeline):
    codes = canvas()
    everywhere = torch.ones_like(codes, dtype=torch.bool)
    with torch.no_grad():
        mine = backbone.image_logits(backbone.encode_prompts(TEXTS), codes, everywhere)
        without = backbone.image_logits(backbone.unconditional().repeat(ROWS), codes, everywhere)
        wanted = backbone.image_logits(backbone.encode_prompts(TEXTS), codes, codes == MASK)
    conditions = [64.0, 64, 0, 0, 6]
    theirs = pipelines_logits(pipeline, TEXTS, codes, conditions)
    torch.testing.assert_close(mine.view(ROWS, N, -1), theirs, atol=1e-5, rtol=0)
    nobody = pipelines_logits(pipeline, ["", ""], codes, conditions)
    torch.testing.assert_close(without.view(ROWS, N, -1), nobody, atol=1e-5, rtol=0)
    assert torch.equal(wanted, mine[(codes == MASK).flatten()])
    assert (theirs - nobody).abs().max() > 1e-3 and (theirs[0] - theirs[1]).abs().max() > 0.1


def test_a_512_model_with_its_conditions_gives_diffusers_logits(tmp_path):
    """It halves the grid before its blocks; crop and score reach the model in the pipeline's order."""
    folder = amused_checkpoint(tmp_path / "amused", downsample=True, upsample=True)
    backbone = AmusedBackbone.load(folder, size=64, crop=(8, 40), aesthetic_score=3.5)
    pipeline, codes = AmusedPipeline.from_pretrained(folder), canvas()
    with torch.no_grad():
        mine = backbone.image_logits(backbone.encode_prompts(TEXTS), codes, torch.ones_like(codes, dtype=torch.bool))
    theirs = pipelines_logits(pipeline, TEXTS, codes, [64.0, 64, 8, 40, 3.5])
    torch.testing.assert_close(mine.view(ROWS, N, -1), theirs, atol=1e-5, rtol=0)
    assert (theirs - pipelines_logits(pipeline, TEXTS, codes, [64.0, 64, 40, 8, 3.5])).abs().max() > 1e-3


def test_pixels_are_those_of_diffusers(backbone, pipeline):
    """In float64: in float32 batches of other sizes round otherwise, by 1e-5 on some CPUs."""
    codes, vqvae = canvas(5).clamp(min=0), copy.deepcopy(pipeline.vqvae).double()
    with torch.no_grad():
        theirs = vqvae.decode(codes.view(5, 4, 4), force_not_quantize=True, shape=(5, 4, 4, 4)).sample.clip(0, 1)
    exact = vq_pixels(copy.deepcopy(backbone.decoder).double(), codes, backbone.grid)
    torch.testing.assert_close((exact + 1) / 2, theirs, atol=1e-12, rtol=0)
    torch.testing.assert_close((backbone.decode(codes).double() + 1) / 2, theirs, atol=1e-4, rtol=0)


class Noise:
    """The noise that a scheduler draws, in the form that our samplers take: two numbers a token and step."""

    def __init__(self, monkeypatch, rows: int, tokens: int):
        self.shape, self.token, self.rank = (rows, tokens), [], []
        multinomial, gumbel_noise = torch.multinomial, scheduling_amused.gumbel_noise

        def watched_multinomial(probs, count, generator=None):
            drawn = multinomial(probs, count, generator=generator)
            cumulative, chosen = probs.double().cumsum(-1), probs.double().gather(1, drawn)
            middle = (cumulative.gather(1, drawn) - chosen / 2) / cumulative[:, -1:]  # of the code's share of [0, 1]
            self.token.append(middle[:, 0].float().view(self.shape))
            return drawn

        def watched_gumbel(t, generator=None):
            again = torch.Generator()
            again.set_state(generator.get_state())
            self.rank.append(torch.zeros_like(t).uniform_(0, 1, generator=again))
            return gumbel_noise(t, generator)

        monkeypatch.setattr(torch, "multinomial", watched_multinomial)
        monkeypatch.setattr(scheduling_amused, "gumbel_noise", watched_gumbel)

    def uniform(self, *purpose_and_step, shape=None):
        step = purpose_and_step[-1]
        rank = self.rank[step] if step < len(self.rank) else torch.zeros(self.shape)  # the last step takes all
        return torch.stack([self.token[step], rank], dim=1)


@pytest.mark.parametrize("steps, temperature", [(1, 2.0), (2, 2.0), (12, 2.0), (12, 0.5), (30, 4.0)])
def test_maskgit_amused_draws_the_schedulers_tokens_in_its_order(monkeypatch, steps, temperature):
    """At every step the same canvas, under the scheduler's own noise and any logits."""
    tokens, codebook = 64, 30
    noise, scheduler = Noise(monkeypatch, ROWS, tokens), AmusedScheduler(mask_token_id=codebook)
    generator = torch.Generator().manual_seed(1)
    logits = [3 * torch.randn(ROWS, tokens, codebook, generator=generator) for _ in range(steps)]
    scheduler.set_timesteps(steps, temperature=(temperature, 0))
    sample, theirs = torch.full((ROWS, tokens), codebook), []
    for step, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.step(logits[step], timestep, sample, generator=generator).prev_sample
        theirs.append(torch.where(sample == codebook, MASK, sample))
    call = iter(logits)
    draw = drawing(lambda codes: next(call)[codes == MASK])
    rollout = maskgit_amused(draw, noise.uniform, (ROWS, tokens), steps, temperature)
    for step, canvas_BN in enumerate(theirs):
        assert torch.equal(torch.where(rollout.unmask_step_BN <= step, rollout.codes_BN, MASK), canvas_BN), step


def test_a_whole_picture_of_the_pipeline_is_painted_by_our_sampler_under_its_noise(monkeypatch, backbone, pipeline):
    noise, theirs = Noise(monkeypatch, ROWS, N), []
    options = dict(num_inference_steps=STEPS, guidance_scale=10.0, output_type="np")
    seen = dict(callback=lambda step, timestep, latents: theirs.append(latents.flatten(1)), callback_steps=1)
    pictures = pipeline(TEXTS, generator=torch.Generator().manual_seed(3), **options, **seen).images
    forward = SharedForward(backbone.image_logits, backbone.mask_id, 3)
    sampling = Sampling(sampler="maskgit-amused", steps=STEPS, guidance=9.0, temperature=2.0)
    rollout = generate(backbone, forward, backbone.encode_prompts(TEXTS), noise, sampling)
    for step, latents in enumerate(theirs):
        mine = torch.where(rollout.unmask_step_BN <= step, rollout.codes_BN, MASK_ID)
        assert torch.equal(mine, latents), step
    mine = (backbone.decode(rollout.codes_BN).permute(0, 2, 3, 1) + 1) / 2
    torch.testing.assert_close(mine, torch.from_numpy(pictures), atol=1e-5, rtol=0)


def test_a_prompt_is_encoded_once_and_hidden_words_once_more(amused_folder, monkeypatch):
    backbone = AmusedBackbone.load(amused_folder, size=64)
    encoder, calls = backbone.texts.encoder, []
    monkeypatch.setattr(encoder, "forward", lambda ids, f=encoder.forward, **k: calls.append(len(ids)) or f(ids, **k))
    prompts, codes = backbone.encode_prompts(TEXTS).repeat(3), canvas(6)
    with torch.no_grad():
        first = backbone.image_logits(prompts, codes, codes == MASK)
        assert torch.equal(backbone.image_logits(prompts, codes, codes == MASK), first) and calls == [1, 1]
        words = torch.zeros_like(prompts.words_BL)
        words[0, 6] = True  # `cat`
        hidden = backbone.image_logits(hide_words(prompts, words, backbone.mask_id), codes, codes == MASK)
        assert calls == [1, 1, 1]
    count = int((codes[0] == MASK).sum())
    assert (hidden[:count] - first[:count]).abs().max() > 1e-3
    torch.testing.assert_close(hidden[count:], first[count:], atol=1e-6, rtol=0)
    backbone.texts.kept = 1
    assert torch.equal(backbone.texts.of(prompts.ids_BL)[0], backbone.texts.of(prompts.ids_BL)[0])
    assert len(backbone.texts._states) == 1


def test_recomputed_blocks_and_sharing_change_no_gradient(amused_folder):
    """Adapters only are trained; float32 log-probabilities of one prompt's two rollouts come from one row."""
    lora, found = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_out.0", "ff.net.2"]}, []
    for recomputed in (False, True):
        backbone = AmusedBackbone.load(amused_folder, lora, size=64, activation_checkpointing=recomputed)
        forward = SharedForward(backbone.image_logits, backbone.mask_id, 8)
        nothing = torch.zeros(2, N, dtype=torch.bool)
        update = Update((View(nothing, ~nothing),), torch.ones(2, N), "global")
        prompts = backbone.encode_prompts(TEXTS[:1]).repeat(2)
        forward.log_probs(prompts, canvas().clamp(min=0), [update], "new")[0].sum().backward()
        assert forward.rows["new"] == 1
        found.append({name: p.grad for name, p in backbone.model.named_parameters() if p.grad is not None})
    adapted = [name for name, _ in backbone.model.get_base_model().named_modules() if name.endswith("lora_B.default")]
    assert len(adapted) == 2 * (2 + 2 + 1) + 2 * (2 + 2)  # two layers; two outer attention blocks, each with two
    assert found[0].keys() == found[1].keys() and all("lora_" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)
        assert "lora_B" not in name or gradient.abs().max() > 0, name


def test_bfloat16_weights_take_float32_adapters(amused_folder):
    lora = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}
    backbone = AmusedBackbone.load(amused_folder, lora, size=64, dtype=torch.bfloat16)
    codes = canvas()
    logits = backbone.image_logits(backbone.encode_prompts(TEXTS), codes, codes == MASK)
    types = {p.dtype for name, p in backbone.model.named_parameters() if "lora_" in name}
    assert logits.dtype == torch.bfloat16 and types == {torch.float32}
    assert logits.isfinite().all()
