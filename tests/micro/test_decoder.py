"""The micro world's decoder."""

import pytest
import torch

from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.micro import decoder, world
from htgrpo_ext.micro.decoder import PATCH, decode_codes
from htgrpo_ext.pixels import to_image

SCENE_LIGHTS = [(scene, light) for scene in world.SCENES for light in world.LIGHTS]
PLAIN_ROWS = 2 * ["SKY_HIGH"] + 2 * ["SKY_LOW"] + ["GROUND_FAR"] + 3 * ["GROUND_NEAR"]
CIRCLE = world.object_code("plain circle", "red", 0)  # its top-left corner lies outside the circle


def empty(scene: str, light: str) -> torch.Tensor:
    """Codes [64] of a scene with nothing in it."""
    rows = [world.background_code(scene, light, getattr(world, name)) for name in PLAIN_ROWS]
    return torch.tensor(rows).repeat_interleave(world.GRID)


def patch(pixels_3HW: torch.Tensor, place: int) -> torch.Tensor:
    row, column = divmod(place, world.GRID)
    return pixels_3HW[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]


def test_pixels_are_float32_between_minus_one_and_one():
    codes_BN = torch.arange(world.CODEBOOK_SIZE + 8).clamp(max=world.CODEBOOK_SIZE - 1).view(7, 64)
    pixels = decode_codes(codes_BN)
    assert pixels.shape == (7, 3, 128, 128) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1


def test_every_code_looks_different_in_every_row():
    places = range(0, 64, 9)  # the diagonal: the other 56 tokens settle the scene
    seen = [set() for _ in places]
    for codes in torch.arange(world.CODEBOOK_SIZE).split(55):
        codes_BN = empty("meadow", "noon").repeat(len(codes), 1)
        codes_BN[:, list(places)] = codes[:, None]
        for pixels in decode_codes(codes_BN):
            for row, place in enumerate(places):
                seen[row].add(to_image(patch(pixels, place)).tobytes())  # as 8-bit pixels
    assert [len(s) for s in seen] == [world.CODEBOOK_SIZE] * 8


def test_one_token_changes_its_own_patch_only():
    before = empty("snow", "dusk")
    after = before.clone()
    after[19] = CIRCLE
    changed = (decode_codes(before[None]) != decode_codes(after[None]))[0].any(dim=0).nonzero()
    low, high = changed.min(dim=0).values, changed.max(dim=0).values
    assert (low // PATCH).tolist() == (high // PATCH).tolist() == [2, 3]  # 19 = 2 * 8 + 3


def test_a_background_token_of_another_scene_is_drawn_by_its_own_code():
    codes = empty("meadow", "noon")
    codes[20] = empty("desert", "dusk")[20]
    odd_one, all_desert = decode_codes(torch.stack([codes, empty("desert", "dusk")]))
    assert torch.equal(patch(odd_one, 20), patch(all_desert, 20))


@pytest.mark.parametrize(("scene", "light"), SCENE_LIGHTS)
def test_an_object_stands_in_front_of_its_rows_plain_patch(scene, light):
    codes = empty(scene, light)
    codes[5::8] = CIRCLE
    with_objects, without = decode_codes(torch.stack([codes, empty(scene, light)]))
    for place in range(5, 64, 8):
        assert torch.equal(patch(with_objects, place)[:, 0, 0], patch(without, place)[:, 0, 0])
        assert not torch.equal(patch(with_objects, place)[:, -1, -1], patch(without, place)[:, -1, -1])


@pytest.mark.parametrize(
    ("counts", "guess"),
    [
        ({("sea", "noon"): 3, ("snow", "dusk"): 4}, ("snow", "dusk")),
        ({("sea", "noon"): 3, ("snow", "dusk"): 3}, ("snow", "dusk")),  # a tie: snow comes first
        ({}, ("meadow", "noon")),
    ],
)
def test_the_scene_behind_objects_is_the_majority_of_background_tokens(counts, guess):
    codes = torch.full((64,), CIRCLE)
    place = 8
    for (scene, light), count in counts.items():
        codes[place : place + count] = world.background_code(scene, light, world.CLOUD_LEFT)
        place += count
    only_objects, plain = decode_codes(torch.stack([codes, empty(*guess)]))
    for place in (0, 16, 32, 63):
        assert torch.equal(patch(only_objects, place)[:, 0, 0], patch(plain, place)[:, 0, 0])


def test_masked_tokens_are_hatched_grey_in_any_scene():
    codes_BN = torch.stack([empty("meadow", "noon"), empty("sea", "dusk"), torch.full((64,), MASK)])
    codes_BN[:, 30] = MASK
    patches = [patch(pixels, 30) for pixels in decode_codes(codes_BN)]
    assert all(torch.equal(patches[0], other) for other in patches)
    assert torch.equal(patches[0][0], patches[0][1]) and torch.equal(patches[0][0], patches[0][2])
    assert len(patches[0].unique()) == 2


def test_painting_the_tables_is_reproducible_and_uses_no_global_random_number():
    codes_BN = torch.arange(384).view(6, 64)
    first, state = decode_codes(codes_BN), torch.get_rng_state()
    decoder._tables.cache_clear()
    assert torch.equal(decode_codes(codes_BN), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("code", [-2, world.CODEBOOK_SIZE])
def test_a_code_outside_the_codebook_is_refused(code):
    with pytest.raises(ValueError, match="0..439"):
        decode_codes(torch.full((1, 64), code))


def test_minus_one_is_black_and_one_is_white():
    pixels = torch.tensor([-1.0, 0.0, 1.0]).expand(3, 1, 3)
    assert [to_image(pixels).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]
