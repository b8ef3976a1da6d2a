"""Lumina-DiMOO's own model class, prompts and sampler beside ours."""

from types import SimpleNamespace

import pytest
import torch

from helpers.authors import StubAnswers, checkout, draw, fixed_noise, top_level
from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone, image_block
from htgrpo_ext.core.sampler import MASK, maskgit_constant

pytestmark = pytest.mark.upstream
PACKAGES = ("config", "generators", "model", "utils")
MASK_ID, OFFSET, CODES = 126336, 126356, 8192


@pytest.fixture(scope="module")
def source():
    """The modules its inference script is made of."""
    folder = checkout("LUMINA_CHECKOUT", "inference/inference_t2i.py")
    with top_level(folder, *PACKAGES):
        import config
        from generators import image_generation_generator
        from model import LLaDAForMultiModalGeneration
        from utils import generation_utils, image_utils, prompt_utils

        yield SimpleNamespace(
            ids=config.SPECIAL_TOKENS,
            generator=image_generation_generator,
            model=LLaDAForMultiModalGeneration,
            noise=generation_utils,
            image=image_utils,
            prompts=prompt_utils,
        )


def sequence(source, tokenizer, text, height, width):
    """The ids of a fully masked image as its inference script puts them together, and the two prompts."""
    tokens, _, rows, columns = source.image.calculate_vq_params(height, width)
    prompt, nobody = (tokenizer(t)["input_ids"] for t in source.prompts.generate_text_to_image_prompt(text))
    masks = [source.ids["mask_token"]] * tokens
    block = source.image.add_break_line(masks, rows, columns, new_number=source.ids["newline_token"])
    answer = [source.ids["answer_start"], source.ids["boi"], *block, source.ids["eoi"], source.ids["answer_end"]]
    return prompt, nobody, answer


@pytest.mark.parametrize(("height", "width"), [(512, 512), (256, 384)])
def test_sequences_and_logits_are_those_of_the_authors(source, lumina_folder, height, width):
    """Two prompts of different length in our batch, each alone in theirs; masked, and half filled in; fp32."""
    ours = LuminaBackbone.load(lumina_folder, prompt_length=40, height=height, width=width)
    model = source.model.from_pretrained(lumina_folder).eval()
    texts = ["a photo of a red cat", "two dog beside the round green bench"]
    tokens = ours.num_image_tokens
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(CODES, (2, tokens), generator=generator)
    codes[0] = MASK
    codes[1, torch.rand(tokens, generator=generator) < 0.5] = MASK
    prompts = ours.encode_prompts(texts)
    with torch.no_grad():
        mine = ours.image_logits(prompts, codes, torch.ones_like(codes, dtype=torch.bool)).view(2, tokens, CODES)
    for row, text in enumerate(texts):
        prompt, nobody, answer = sequence(source, ours.tokenizer, text, height, width)
        assert prompts.ids_BL[row][prompts.attention_BL[row]].tolist() == prompt
        unconditional = ours.unconditional()
        assert unconditional.ids_BL[unconditional.attention_BL].tolist() == nobody
        assert ours.block.ids(torch.full((1, tokens), MASK))[0].tolist() == answer
        ids = torch.tensor([prompt + answer])
        image = (ids == MASK_ID)[0]
        ids[0, image] = torch.where(codes[row] == MASK, MASK_ID, codes[row] + OFFSET)
        with torch.no_grad():
            theirs = model(ids, infer=True).logits[0, image, OFFSET : OFFSET + CODES]
        torch.testing.assert_close(mine[row], theirs, atol=1e-5, rtol=0)


def test_pixels_are_those_of_the_authors(source, lumina_folder):
    ours = LuminaBackbone.load(lumina_folder, height=48, width=80)
    codes = torch.randint(CODES, (1, 15), generator=torch.Generator().manual_seed(0))
    picture = source.image.decode_vq_to_image(codes + OFFSET, "", str(lumina_folder), 48, 80)
    mine = ((ours.decode(codes)[0] + 1) / 2 * 255).round().byte()
    theirs = torch.tensor(list(picture.getdata()), dtype=torch.uint8).view(48, 80, 3).permute(2, 0, 1)
    assert (mine.int() - theirs.int()).abs().max() <= 1


class Stub(StubAnswers):
    """Called as Lumina-DiMOO's sampler calls its model; rows that begin with id 1 have the prompt."""

    def __init__(self, block, codebook):
        super().__init__(len(block.slot_N), codebook)
        self.block, self.offset = block, OFFSET
        self.module = self  # as a wrapped model has one; only its cache is asked for there

    def caching(self, enable):
        assert not enable

    def forward(self, ids, infer, **_):
        if ids.shape == (1, 1):  # the sampler asks how wide the head is
            return SimpleNamespace(logits=torch.zeros(1, 1, self.offset + self.head.shape[1]))
        start = ids.shape[1] - len(self.block.frame_I)
        answers = self.answer(self.block.codes(ids[:, start:]), conditional=bool(ids[0, 0] == 1))
        logits = torch.zeros(*ids.shape, self.offset + self.head.shape[1])
        logits[:, start + self.block.slot_N, self.offset :] = answers
        return SimpleNamespace(logits=logits)


HEIGHT, WIDTH, CODEBOOK = 96, 160, 50  # 6 rows of 10


@pytest.mark.parametrize("guidance", [0, 3.5])
@pytest.mark.parametrize("steps", [1, 10, 64, 100])
def test_maskgit_gives_the_authors_tokens_in_their_order(source, monkeypatch, steps, guidance):
    """At temperature 1, fp32, the same noise; 100 steps for 60 tokens, so that the last one finishes early."""
    block = image_block(HEIGHT, WIDTH)
    tokens = len(block.slot_N)
    uniform, step = fixed_noise(1, tokens), iter(range(2 * steps))
    mine, theirs = StubAnswers(tokens, CODEBOOK), Stub(block, CODEBOOK)
    ids = torch.cat([torch.tensor([[1, 2, 3]]), block.ids(torch.full((1, tokens), MASK))], dim=1)

    def still_masked():
        return block.codes(ids[:, 3:]) == MASK

    def gumbel_max_sample(logits, tau, generator=None):
        assert tau == 1
        masked = still_masked()
        chosen = draw(logits.softmax(-1), uniform(next(step) // 2)[:, 0][masked][None])
        gumbel_max_sample.masked = masked  # the sampler writes all draws in before it asks for the second noise
        return chosen

    def gumbel_noise(t, generator=None):
        return -(-uniform(next(step) // 2)[:, 1][gumbel_max_sample.masked].log()).log()[None]

    monkeypatch.setattr(source.generator, "gumbel_max_sample", gumbel_max_sample)
    monkeypatch.setattr(source.noise, "gumbel_noise", gumbel_noise)
    codes = source.generator.generate_image(
        theirs,
        ids,
        seq_len=tokens,
        timesteps=steps,
        cfg_scale=guidance,
        uncon_ids=torch.tensor([[2, 3]]),
        code_start=5,
        codebook_size=CODEBOOK,
    )
    rollout = maskgit_constant(mine.ours(guidance), uniform, (1, tokens), steps)
    assert mine.seen == theirs.seen
    assert torch.equal(rollout.codes_BN, codes - OFFSET)
