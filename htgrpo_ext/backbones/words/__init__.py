"""The words world's model, of the micro model's kind: a base for each of the two difficulties."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from htgrpo_ext.backbones.micro import Micro
from htgrpo_ext.words import world

if TYPE_CHECKING:
    from htgrpo_ext.backbones.words.backbone import WordsBackbone
    from htgrpo_ext.core.views import Prompts


class Words(Micro):
    """Settings of MODEL=words: one font, the word always at the same place."""

    name: Literal["words"]  # pyright: ignore[reportIncompatibleVariableOverride], another literal

    world = "words"

    @property
    def num_image_tokens(self) -> int:
        return world.NUM_IMAGE_TOKENS

    def backbone_class(self) -> "type[WordsBackbone]":
        from htgrpo_ext.backbones.words.backbone import WordsBackbone

        return WordsBackbone

    def prompt_encoder(self) -> "Callable[[Sequence[str]], Prompts]":
        from htgrpo_ext.backbones.words.backbone import encode_letters

        return encode_letters

    def planned_prompts(self, count: int) -> "tuple[Prompts, Prompts]":
        from htgrpo_ext.backbones.words.backbone import encode_letters

        texts = [prompt["prompt"] for prompt in world.split_prompts()[0]]
        chosen = [texts[i * len(texts) // count % len(texts)] for i in range(count)]  # of all lengths
        return encode_letters(chosen), encode_letters([""])


class WordsFree(Words):
    """Settings of MODEL=words-free: the word anywhere, in one of three fonts and two sizes."""

    name: Literal["words-free"]  # pyright: ignore[reportIncompatibleVariableOverride], so that runs have their own name
