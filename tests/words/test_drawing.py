"""Pictures of words: the same each time, whole, and with letters that stand out."""

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from htgrpo_ext.words import drawing, world

texts = st.text(world.LETTERS, min_size=1, max_size=world.LONGEST)
seeds = st.integers(0, 2**32)


@given(texts, seeds, st.floats(0, 1))
def test_the_same_generator_draws_the_same_picture(text, seed, free):
    first, again = (drawing.draw(text, Random(seed), free) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == (24, 64)
    assert np.array_equal(first, again)


@given(st.text("mwjgil", min_size=1, max_size=5), seeds, st.sampled_from([0, 0.1, 0.9, 1]))
@settings(max_examples=60)
def test_no_part_of_a_letter_is_outside_the_picture(text, seed, free):
    calls = []

    class Recorder:
        def __init__(self, image):
            self.real = ImageDraw.Draw(image)

        @staticmethod
        def text(place, *args, **kwargs):
            calls.append((place, args, kwargs))

    class Stand:
        Draw = staticmethod(lambda image: Recorder(image))

    real, drawing.ImageDraw = drawing.ImageDraw, Stand
    try:
        drawing.draw(text, Random(seed), free)
    finally:
        drawing.ImageDraw = real
    [((left, top), args, kwargs)] = calls
    wide = Image.new("L", (264, 224))
    ImageDraw.Draw(wide).text((left + 100, top + 100), *args, **kwargs)
    ink = np.asarray(wide, dtype=int)
    assert ink.sum() == ink[100:124, 100:164].sum() > 0


def test_letters_stand_out_from_every_background():
    for seed in range(200):
        free = bool(seed % 2)
        ink, picture = drawing._ink("mill", Random(seed), free), drawing.draw("mill", Random(seed), free).astype(float)
        letters, background = picture[ink > 0.99].mean(), picture[ink == 0].mean()
        assert abs(letters - background) > 100


def test_the_first_letter_is_at_the_same_place_in_every_fixed_picture_and_elsewhere_in_free_ones():
    def corner(seed, free):
        rows, columns = np.nonzero(drawing._ink("hat", Random(seed), free))
        return rows.min(), columns.min()

    assert len({corner(seed, False) for seed in range(20)}) == 1
    assert len({corner(seed, True) for seed in range(20)}) > 10
