"""`loop.compile`: the same numbers, through graphs that are really compiled; without a code generator, in seconds."""

import pytest
import torch
from torch._dynamo.utils import counters

from helpers.micro_runs import records, tiny_settings
from htgrpo_ext.backbones import policy
from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone
from htgrpo_ext.backbones.micro.backbone import MicroBackbone
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.workflow.train import train

LORA = dict(r=2, lora_alpha=2, target_modules=r".*\.blocks\.\d+\.(q_proj|ff_out)")


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Counts the compiled graphs; they are computed by PyTorch's own operators."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(policy, "COMPILER", "aot_eager")
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def answers(backbone, texts):
    """Logits without and with gradient, of one row and of several; their gradients; the reference's logits."""
    prompts, found = backbone.encode_prompts(texts), []
    tokens, weights = backbone.num_image_tokens, [p for p in backbone.model.parameters() if p.requires_grad]
    codes_UN = torch.arange(len(texts) * tokens).view(-1, tokens) % 50
    codes_UN[:, ::2] = MASK
    for rows in (slice(0, 1), slice(0, len(texts))):
        given = prompts.rows(rows), codes_UN[rows], codes_UN[rows] == MASK
        with torch.no_grad():
            found.append(backbone.image_logits(*given))
        logits = backbone.image_logits(*given)
        found += [logits.detach(), *torch.autograd.grad(logits.square().mean(), weights)]
        with torch.no_grad(), backbone.reference():
            found.append(backbone.image_logits(*given))
    return found


def micro(checkpoint):
    backbone = MicroBackbone.load(checkpoint)
    backbone.model.double()
    backbone._reference.double()
    return backbone, ["a red circle", "a blue square left of a green circle", "a red star"]


def lumina(folder, lora):
    backbone = LuminaBackbone.load(
        folder, lora, prompt_length=40, height=96, width=64, dtype=torch.float64, activation_checkpointing=True
    )
    for parameter in backbone.model.parameters():  # fresh adapters have no effect
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    return backbone, ["a photo of a red cat", "two dog beside the round green bench , a photo"]


@pytest.mark.parametrize("name", ["micro", "lumina", "lumina with adapters"])
def test_logits_and_gradients_are_those_of_the_blocks_as_they_are(name, checkpoint, lumina_folder, graphs):
    if name == "micro":
        backbone, texts = micro(checkpoint)
    else:
        backbone, texts = lumina(lumina_folder, LORA if "adapters" in name else None)
    backbone.model.eval()
    expected = answers(backbone, texts)
    names = list(backbone.model.state_dict())
    backbone.compile_blocks("default")
    assert graphs() == 0
    for found, known in zip(answers(backbone, texts), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-9, atol=1e-11)
    first = graphs()
    answers(backbone, texts)
    assert 0 < graphs() == first and list(backbone.model.state_dict()) == names


def test_a_run_counts_the_graphs_and_trains_as_without(checkpoint, tmp_path, reward_with_spread):
    plain = train(tiny_settings("htgrpo", checkpoint, tmp_path / "plain", "loop.cycles=2"))
    compiled = train(tiny_settings("htgrpo", checkpoint, tmp_path / "a", "loop.cycles=2", "loop.compile=default"))
    counts = [cycle["compiled_graphs"] for cycle in records(compiled, "cycle")]
    assert 0 < counts[0] <= counts[1] and "compiled_graphs" not in records(plain, "cycle")[0]
    for a, b in zip(records(plain, "update"), records(compiled, "update"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
