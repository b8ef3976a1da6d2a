"""CLIP and the aesthetic predictor against open_clip itself, on tiny random models in its formats."""

import json
import sys

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from helpers.open_clip_here import open_clip
from htgrpo_ext.errors import UserError
from htgrpo_ext.pixels import from_levels
from htgrpo_ext.rewards.mix import Rewards, load_scorer, pooled
from htgrpo_ext.rewards.scorers import scorer_class
from htgrpo_ext.rewards.settings import RewardSettings, RewardTerm

TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CPU = torch.device("cpu")
PROMPTS = [{"prompt": text} for text in ("a red circle", "two green stars", "a red circle", "snow")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """open_clip, the name of a tiny model that it knows, and a file with the model's weights."""
    module, folder = open_clip(), tmp_path_factory.mktemp("clip")
    (folder / "tiny-for-tests.json").write_text(json.dumps(TINY))
    module.add_model_config(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = module.create_model("tiny-for-tests")
    torch.save(model.state_dict(), folder / "weights.pt")
    local = folder / "local"
    local.mkdir()
    (local / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), local / "open_clip_pytorch_model.bin")
    return module, "tiny-for-tests", folder / "weights.pt"


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)  # 72 x 56: resized, and cropped


def own_numbers(clip, images, prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """Image vectors and cosines as open_clip's README computes them, one image and text at a time."""
    module, name, weights = clip
    model, _, preprocess = module.create_model_and_transforms(name, pretrained=str(weights))
    model.eval()
    vectors, cosines = [], []
    with torch.no_grad():
        for image, prompt in zip(images, prompts, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            vector = model.encode_image(preprocess(picture).unsqueeze(0))
            text = model.encode_text(module.get_tokenizer(name)([prompt["prompt"]]))
            vector, text = vector / vector.norm(), text / text.norm()
            vectors.append(vector[0])
            cosines.append((vector @ text.T).item())
    return torch.stack(vectors), torch.tensor(cosines)


def options(clip, **more):
    return {"model": clip[1], "weights": str(clip[2]), **more}


def test_scores_are_open_clips_own(clip, images):
    _, cosines = own_numbers(clip, images, PROMPTS)
    scores = scorer_class("clip")(CPU, **options(clip)).score(PROMPTS, list(images))["clip"]
    torch.testing.assert_close(torch.tensor(scores), cosines, atol=1e-6, rtol=0)
    assert cosines.std() > 0.01  # the tiny model distinguishes images and texts


def test_a_local_folder_gives_the_same(clip, images):
    local = {"model": f"local-dir:{clip[2].parent / 'local'}"}
    scores = [scorer_class("clip")(CPU, **o).score(PROMPTS, list(images))["clip"] for o in (local, options(clip))]
    assert scores[0] == scores[1]


def test_images_of_several_sizes_and_a_long_prompt_are_scored(clip, images):
    mixed = [images[0], images[1][:, :40, :40]]
    prompts = [{"prompt": "very " * 200 + "red"}, {"prompt": "very " * 300 + "blue"}]
    scores = scorer_class("clip")(CPU, **options(clip)).score(prompts, mixed)["clip"]
    torch.testing.assert_close(torch.tensor(scores), own_numbers(clip, mixed, prompts)[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("words", [1, 74, 75, 76, 77, 200])
def test_a_prompt_is_cut_when_its_tokens_exceed_75(clip, images, words):
    """77 less the marks of start and end; each of these words is one token. A rollout of it counts each time."""
    long, scorer = {"prompt": " ".join(["red"] * words)}, scorer_class("clip")(CPU, **options(clip))
    scorer.score([long, PROMPTS[0], long], list(images[:3]))
    assert scorer.cut_prompts == (2 if words > 75 else 0)


def test_cut_prompts_are_counted_per_batch_and_logged_once(clip, images, caplog):
    term = {"name": "clip", "weight": 1.0, "batch_size": 3, "device": "cpu", "options": options(clip)}
    settings = {"mixing": "sum", "on_failure": "stop", "max_failed_share": 0.0, "retries": 0, "deadline": 5.0}
    rewards = Rewards(RewardSettings(**settings, overlap=True, terms=[term]), Accelerator(), 2)
    rewards.start()
    long = {"prompt": "very " * 100 + "red"}
    batches = [[PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, [PROMPTS[0]] * 2 + [long] * 2, [long] * 4]
    metrics = [rewards.score(prompts, torch.zeros(4, 64), lambda: from_levels(images)).metrics for prompts in batches]
    assert [each["clip_cut_prompts"] for each in metrics] == [0, 2, 4]
    assert pooled(metrics, 2)["clip_cut_prompts"] == 6
    (record,) = caplog.records
    assert record.getMessage() == "reward clip reads only the start of 2 long prompts (clip_cut_prompts)"


def test_bfloat16_scores_are_close(clip, images):
    full, half = (
        scorer_class("clip")(CPU, **options(clip, dtype=dtype)).score(PROMPTS, list(images))["clip"]
        for dtype in ("float32", "bfloat16")
    )
    assert full != half and full == pytest.approx(half, abs=0.02)


def test_a_run_scores_with_clip_in_batches_and_keeps_the_global_generator(clip, images):
    term = {"name": "clip", "weight": 2.0, "scale": 10.0, "batch_size": 3, "device": "cpu", "options": options(clip)}
    settings = {"mixing": "sum", "on_failure": "stop", "max_failed_share": 0.0, "retries": 0, "deadline": 5.0}
    settings = RewardSettings(**settings, overlap=True, terms=[term])
    before = torch.get_rng_state()
    rewards = Rewards(settings, Accelerator(), 2)
    rewards.start()
    assert torch.equal(torch.get_rng_state(), before)
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    judged = rewards.score(prompts, torch.zeros(4, 64), lambda: from_levels(images))
    cosines = own_numbers(clip, images, prompts)[1]
    torch.testing.assert_close(judged.reward_B, 20 * cosines, atol=1e-4, rtol=0)
    assert judged.metrics["clip_mean"] == pytest.approx(cosines.mean().item(), abs=1e-6)


def test_aesthetic_heads_load_in_both_published_layouts(clip, images, tmp_path):
    vectors, _ = own_numbers(clip, images, PROMPTS)
    torch.manual_seed(3)
    plain = nn.Linear(24, 1)
    stack = nn.Sequential(*[nn.Linear(24, 16), nn.Dropout(0.2), nn.Linear(16, 8), nn.Dropout(0.2), nn.Linear(8, 1)])
    ten = nn.Sequential(
        *[nn.Linear(24, 24), *[nn.Dropout(0.1) for _ in range(9)], nn.Linear(24, 1)]
    )  # 10 after 0, not 1
    for number, head in enumerate((plain, stack, ten)):
        file = tmp_path / f"head{number}.pth"
        prefix = "layers." if head is not plain else ""
        torch.save({f"{prefix}{key}": value for key, value in head.state_dict().items()}, file)
        scores = scorer_class("aesthetic")(CPU, head=str(file), **options(clip)).score(PROMPTS, list(images))
        with torch.no_grad():
            expected = head.eval()(vectors)[:, 0]
        torch.testing.assert_close(torch.tensor(scores["aesthetic"]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("clip", {"weights": "no-such-tag"}, "clip: tiny-for-tests with weights no-such-tag: Pretrained value"),
        ("clip", {"model": "ViT-X-99"}, "Model config for 'ViT-X-99' not found"),
        ("clip", {"weights": ""}, "Required pretrained weights"),
        ("clip", {"dtype": "int8"}, "unknown dtype `int8` (one of float32, bfloat16, float16)"),
        ("clip", {"wieghts": "openai"}, "reward clip: unknown option `wieghts` (one of model, weights, dtype)"),
        ("aesthetic", {}, "reward aesthetic: option `head` is missing"),
        ("aesthetic", {"head": "nowhere.pth"}, "nowhere.pth: no such file"),
        ("aesthetic", {"head": __file__}, "test_clip.py: not a predictor's weights"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(name, given, says, clip):
    term = RewardTerm(name=name, weight=1, options=options(clip) | given)
    with pytest.raises(UserError) as caught:
        load_scorer(term, CPU)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_openai_weights_need_the_model_with_their_activation(clip, monkeypatch):
    """open_clip only warns; every score would be slightly wrong."""
    monkeypatch.setattr(clip[0].factory, "download_pretrained", lambda *_, **__: "weights.pt")
    with pytest.raises(UserError, match=r"another activation than model `ViT-L-14` .*-quickgelu"):
        scorer_class("clip")(CPU, model="ViT-L-14", weights="openai")


def test_the_default_model_has_the_activation_of_its_weights(clip):
    default = scorer_class("clip").__init__.__defaults__
    assert clip[0].get_model_config(default[0])["quick_gelu"]
    assert clip[0].pretrained.get_pretrained_cfg(default[0], default[1])["quick_gelu"]


def test_without_open_clip_the_error_names_the_setup_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="open_clip cannot be imported .*make setup-clip"):
        scorer_class("clip")(CPU)
