"""MMaDA's own model classes and samplers, and MaskGRPO's copies of them, beside ours."""

import pytest
import torch

from helpers.authors import StubAnswers, checkout, draw, fixed_noise, module_of, sized
from htgrpo_ext.backbones.adapters import merge
from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone
from htgrpo_ext.core.sampler import MASK, emerge, maskgit

pytestmark = pytest.mark.upstream
TEXTS = ["a photo of a red cat", "two dog beside the round green bench , a photo", ""]
LENGTH = 24
MASK_ID, OFFSET = 126336, 126349
CHECKOUTS = {"masked": "MMADA_CHECKOUT", "as-maskgrpo": "UPSTREAM_CHECKOUT"}


def authors_model(attention: str, folder):
    source = module_of(checkout(CHECKOUTS[attention], "models/modeling_mmada.py"), "models", "modeling_mmada")
    return source.MMadaModelLM.from_pretrained(folder).eval()


def canvas(rows, masked=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(8192, (rows, 1024), generator=generator)
    return codes.masked_fill(torch.rand(codes.shape, generator=generator) < masked, MASK)


def authors_prompting(folder, tokenizer):
    source = module_of(folder, "training", "prompting_utils")
    return source.UniversalPrompting(tokenizer, max_text_len=LENGTH - 1, use_reserved_token=True)


def authors_rows(prompting, texts, codes):
    """Ids and mask as the authors' prompting makes them."""
    return prompting((list(texts), torch.where(codes == MASK, MASK_ID, codes + OFFSET)), "t2i_gen")


@pytest.mark.parametrize("attention", ["masked", "as-maskgrpo"])
def test_prompts_and_logits_are_those_of_the_authors(mmada_folder, attention):
    """Real prompting, real class, the mask as their sampler makes it; every image position, fp32."""
    folder = checkout(CHECKOUTS[attention], "training/prompting_utils.py")
    ours = MMaDABackbone.load(mmada_folder, prompt_length=LENGTH, masks_padding=attention == "masked")
    prompting = authors_prompting(folder, ours.tokenizer)
    codes = canvas(len(TEXTS))
    ids, mask = authors_rows(prompting, TEXTS, codes)
    prompts = ours.encode_prompts(TEXTS)
    assert torch.equal(torch.cat([prompts.ids_BL, ours.block.ids(codes)], dim=1), ids)
    assert torch.equal(prompts.attention_BL, mask[:, :LENGTH].bool())
    assert torch.equal(ours.unconditional().ids_BL[0], ids[2, :LENGTH])

    model = authors_model(attention, mmada_folder)
    bias = (mask[:, :, None] & mask[:, None, :]).bool().unsqueeze(1)
    with torch.no_grad():
        theirs = model(ids, attention_bias=bias).logits[:, -1025:-1, OFFSET : OFFSET + 8192]
        mine = ours.image_logits(prompts, codes, torch.ones_like(codes, dtype=torch.bool)).view_as(theirs)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_a_prompt_is_cut_as_the_authors_cut_it(mmada_folder):
    folder = checkout("UPSTREAM_CHECKOUT", "training/prompting_utils.py")
    ours = MMaDABackbone.load(mmada_folder, prompt_length=LENGTH)
    prompting = authors_prompting(folder, ours.tokenizer)
    for words in (LENGTH - 4, LENGTH - 3, LENGTH - 2, 60):  # fits, just fits, one too long, far too long
        texts, codes = ["cat " * words], canvas(1)
        ids, _ = authors_rows(prompting, texts, codes)
        assert torch.equal(ours.encode_prompts(texts).ids_BL, ids[:, :LENGTH]), words


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_what_training_saves_loads_in_the_authors_class(mmada_folder, tmp_path, tuning):
    """Adapters by way of `merge`, full weights as they are; same logits, and no weight missing or left over."""
    source = module_of(checkout("MMADA_CHECKOUT", "models/modeling_mmada.py"), "models", "modeling_mmada")
    targets = r".*\.blocks\.\d+\.(q_proj|attn_out|ff_proj|ff_out)"
    lora = {"r": 2, "lora_alpha": 4, "target_modules": targets} if tuning == "lora" else None
    ours = MMaDABackbone.load(mmada_folder, lora, prompt_length=LENGTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.model.parameters():
            if parameter.requires_grad and parameter.numel() < 10_000:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ours.model.save_pretrained(tmp_path / "model")
    out = tmp_path / "model"
    if tuning == "lora":
        out = tmp_path / "merged"
        merge(mmada_folder, tmp_path / "model", out)
    theirs, found = source.MMadaModelLM.from_pretrained(out, output_loading_info=True)
    assert not any(found[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    prompts, codes = ours.encode_prompts([TEXTS[0]]), canvas(1)
    ids = torch.cat([prompts.ids_BL, ours.block.ids(codes)], dim=1)[:, LENGTH - 9 :]  # without its pads
    assert prompts.attention_BL.sum() == 9
    with torch.no_grad():
        mine = ours.image_logits(prompts, codes, torch.ones_like(codes, dtype=torch.bool))
        wanted = theirs.eval()(ids).logits[0, -1025:-1, OFFSET : OFFSET + 8192]
        before = MMaDABackbone.load(mmada_folder, prompt_length=LENGTH).image_logits(prompts, codes, codes == MASK)
    torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=0)
    assert (mine[codes[0] == MASK] - before).abs().max() > 1e-2


class Stub(StubAnswers):
    """Called as MMaDA's samplers call their model."""

    def forward(self, ids, attention_bias=None):
        tokens, codebook = len(self.place), self.head.shape[1]
        image = ids[:, -(tokens + 1) : -1]
        codes = torch.where(image == MASK_ID, MASK, image - self.offset)
        logits = torch.zeros(*ids.shape, self.offset + codebook)
        half = len(ids) // (2 if self.guidance else 1)
        logits[:half, -(tokens + 1) : -1, self.offset :] = self.answer(codes[:half], conditional=True)
        if self.guidance:
            logits[half:, -(tokens + 1) : -1, self.offset :] = self.answer(codes[half:], conditional=False)
        return type("Output", (), {"logits": logits})


TOKENS, CODES, ROWS = 64, 50, 3


def both(monkeypatch, variable, sampler, steps, guidance):
    """Our rollout and their codes, under the same noise; and the canvases each model was shown."""
    source = module_of(checkout(variable, "models/modeling_mmada.py"), "models", "modeling_mmada")
    uniform, offset = fixed_noise(ROWS, TOKENS), 10
    mine, theirs = StubAnswers(TOKENS, CODES), Stub(TOKENS, CODES)
    theirs.offset, theirs.guidance = offset, guidance
    step = iter(range(2 * steps))  # twice a step: what to draw, then how confident to be of it
    sampling = module_of(checkout(variable, "models/sampling.py"), "models", "sampling")

    def multinomial(probs, count, generator=None):
        return draw(probs.view(ROWS, TOKENS, CODES), uniform(next(step) // 2)[:, 0]).view(-1, 1)

    def gumbel_noise(t, generator=None):
        return -(-uniform(next(step) // 2)[:, 1].log()).log()

    def sample_categorical(probs):
        noise = uniform(next(step))
        if probs.shape[-1] == CODES:
            return draw(probs, noise[:, 0])
        # One draw in which staying masked is a class of its own; we draw whether, and what, by two numbers.
        return torch.where(noise[:, 1] < probs[..., -1], CODES, draw(probs[..., :-1], noise[:, 0]))

    monkeypatch.setattr(torch, "multinomial", multinomial)
    monkeypatch.setattr(sampling, "gumbel_noise", gumbel_noise)
    monkeypatch.setattr(source, "sample_categorical", sample_categorical, raising=False)
    ids = torch.full((ROWS, 5 + TOKENS + 1), 3)
    ids[:, 5:-1] = MASK_ID
    function = source.MMadaModelLM.t2i_generate if sampler is maskgit else source.MMadaModelLM.t2i_generate_emerge
    sizes = dict(timesteps=steps, guidance_scale=guidance, seq_len=TOKENS, resolution=4, codebook_size=CODES)
    masks = dict(
        attention_mask=torch.ones_like(ids), uncond_attention_mask=torch.ones_like(ids), uni_prompting=sized(offset)
    )
    codes = function(theirs, ids, ids.clone() if guidance else None, **sizes, **masks)
    return sampler(mine.ours(guidance), uniform, (ROWS, TOKENS), steps), codes, mine.seen, theirs.seen


@pytest.mark.parametrize("guidance", [0, 3.5])
@pytest.mark.parametrize("steps", [1, 10, 20, 50])
@pytest.mark.parametrize("variable", ["MMADA_CHECKOUT", "UPSTREAM_CHECKOUT"])
def test_maskgit_gives_the_authors_tokens_in_their_order(monkeypatch, variable, steps, guidance):
    rollout, codes, mine, theirs = both(monkeypatch, variable, maskgit, steps, guidance)
    assert mine == theirs  # every canvas on the way: so the order is the same as well
    assert torch.equal(rollout.codes_BN, codes)


def test_at_two_thirds_of_the_steps_rounding_moves_one_token(monkeypatch):
    """After step 8 of 12, N cos 60 degrees = N/2 tokens stay masked; in the authors' float32 it is a hair less."""
    _, _, mine, theirs = both(monkeypatch, "MMADA_CHECKOUT", maskgit, steps=12, guidance=0)
    assert mine[:8] == theirs[:8]
    masked = [[row.count(MASK) for row in seen[8]] for seen in (mine, theirs)]
    assert masked == [[TOKENS // 2] * ROWS, [TOKENS // 2 - 1] * ROWS]
    for ours, authors in zip(mine[8], theirs[8], strict=True):
        assert sum(a != b for a, b in zip(ours, authors, strict=True)) == 1


@pytest.mark.parametrize("guidance", [0, 3.5])
@pytest.mark.parametrize("steps", [1, 12, 32])
def test_emerge_gives_the_authors_tokens_in_their_order(monkeypatch, steps, guidance):
    rollout, codes, mine, theirs = both(monkeypatch, "UPSTREAM_CHECKOUT", emerge, steps, guidance)
    # Ours does not call the model in a step in which no token appears, and so sees no canvas twice.
    assert mine == [canvas for canvas, before in zip(theirs, [None, *theirs], strict=False) if canvas != before]
    assert torch.equal(rollout.codes_BN, codes)
