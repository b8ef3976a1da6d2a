"""The words world's model, of the micro model's kind: a base for each of the two difficulties."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from htgrpo_ext.backbones.settings import ModelSection
from htgrpo_ext.words import world

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.sizes import Sizes
    from htgrpo_ext.backbones.words.backbone import WordsBackbone
    from htgrpo_ext.backbones.words.model import WordsConfig
    from htgrpo_ext.core.views import Prompts


class Words(ModelSection):
    """Settings of MODEL=words: one font, the word always at the same place."""

    name: Literal["words"]

    world = "words"
    on_accelerators = False

    @property
    def num_image_tokens(self) -> int:
        return world.NUM_IMAGE_TOKENS

    def absent(self, pixels: bool) -> list[str]:
        if (self.checkpoint / "config.json").exists():
            return []
        return [f"{self.checkpoint}: no words checkpoint there (make one with `htgrpo pretrain-words`)"]

    def load(self, device: "str | torch.device", seed: int, frozen: bool) -> "WordsBackbone":
        from htgrpo_ext.backbones.words.backbone import WordsBackbone

        return WordsBackbone.load(self.checkpoint, self.lora_keywords(), device, seed, frozen)

    def config(self) -> "WordsConfig":
        """The checkpoint's sizes; before there is one, those that `htgrpo pretrain-words` gives it."""
        from htgrpo_ext.backbones.words.backbone import read_config
        from htgrpo_ext.backbones.words.model import WordsConfig

        return read_config(self.checkpoint) if self.checkpoint.exists() else WordsConfig()

    def prompt_encoder(self) -> "Callable[[Sequence[str]], Prompts]":
        from htgrpo_ext.backbones.words.backbone import encode_letters

        return encode_letters

    def sizes(self) -> "Sizes":
        from htgrpo_ext.backbones.sizes import FLOAT, sizes_of
        from htgrpo_ext.backbones.words.model import WordsModel

        config = self.config()
        return sizes_of(
            self,
            lambda: WordsModel(config),
            layers=config.num_layers,
            width=config.hidden_size,
            ffn=config.ffn_size,
            sequence=config.prompt_length + self.num_image_tokens,
            codebook=config.codebook_size,
            element=FLOAT,
        )

    def planned_prompts(self, count: int) -> "tuple[Prompts, Prompts]":
        from htgrpo_ext.backbones.words.backbone import encode_letters

        texts = [prompt["prompt"] for prompt in world.split_prompts()[0]]
        chosen = [texts[i * len(texts) // count % len(texts)] for i in range(count)]  # of all lengths
        return encode_letters(chosen), encode_letters([""])


class WordsFree(Words):
    """Settings of MODEL=words-free: the word anywhere, in one of four fonts and three sizes."""

    name: Literal["words-free"]  # pyright: ignore[reportIncompatibleVariableOverride], so that runs have their own name
