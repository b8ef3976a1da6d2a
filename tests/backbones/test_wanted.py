"""What a last block is asked for."""

import pytest
import torch

from htgrpo_ext.backbones.wanted import at_places, wanted_positions

CPU = torch.device("cpu")


@torch.no_grad()
def test_wanted_positions_come_first_and_in_order():
    positions_US = torch.zeros(3, 40, dtype=torch.bool)
    positions_US[0, [3, 30, 7]] = True
    positions_US[2, 39] = True
    wanted = wanted_positions(positions_US, CPU)
    assert wanted is not None and wanted.place_UQ.shape == (3, 8)
    assert wanted.place_UQ[0, :3].tolist() == [3, 7, 30] and wanted.place_UQ[2, 0] == 39
    features_USD = torch.arange(3 * 40 * 2).view(3, 40, 2)
    chosen = at_places(features_USD, wanted.place_UQ).flatten(0, 1)[wanted.slot_M]
    assert torch.equal(chosen, features_USD[positions_US])


def test_all_is_computed_where_gradients_flow_or_half_is_wanted():
    few_US = torch.arange(40)[None] < 3
    assert wanted_positions(few_US, CPU) is None
    with torch.no_grad():
        assert wanted_positions(few_US, CPU) is not None
        assert wanted_positions(torch.arange(40)[None] < 21, CPU) is None


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4])
def test_the_micro_models_last_block_may_leave_out_what_is_not_wanted(checkpoint, share):
    from htgrpo_ext.backbones.micro.backbone import MicroBackbone

    backbone, generator = MicroBackbone.load(checkpoint), torch.Generator().manual_seed(1)
    backbone.model.double()
    prompts = backbone.encode_prompts(["a red circle", "a blue square left of a green circle"])
    codes_UN = torch.randint(-1, 440, (2, 64), generator=generator)
    wanted_UN = torch.rand(2, 64, generator=generator) < share
    wanted_UN[0, 0] = True
    whole = backbone.image_logits(prompts, codes_UN, wanted_UN).detach()
    with torch.no_grad():
        torch.testing.assert_close(backbone.image_logits(prompts, codes_UN, wanted_UN), whole, atol=1e-12, rtol=0)
