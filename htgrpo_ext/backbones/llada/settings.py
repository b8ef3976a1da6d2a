"""What the settings of MMaDA and Lumina-DiMOO have in common."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from htgrpo_ext.backbones.settings import Lora, ModelSection

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.llada.backbone import ImageBlock, LladaBackbone
    from htgrpo_ext.backbones.sizes import Sizes
    from htgrpo_ext.core.views import Prompts


class LladaModelSection(ModelSection):
    """Settings of a model on LLaDA's transformer; a subclass says which backbone and which layout."""

    dtype: Literal["bfloat16", "float32"]
    activation_checkpointing: bool
    prompt_length: Annotated[int, Field(ge=4, le=4096)]  # LLaDA's max_sequence_length
    vq_checkpoint: Path | None

    keeps_keys = True
    vq_source: ClassVar[str] = ""  # the repository of `vq_checkpoint`

    def absent(self, pixels: bool) -> list[str]:
        found = super().absent(pixels)
        if pixels and self.vq_checkpoint:
            found += self._absent("vq_checkpoint", self.vq_checkpoint, self.vq_source)
        return found

    def lora_targets(self, lora: Lora) -> list[str] | str:
        # The output head is called `ff_out` too, and gets no adapter.
        return rf".*\.blocks\.\d+\.({'|'.join(lora.targets)})"

    def backbone_class(self) -> "type[LladaBackbone]":
        """The backbone that `load` makes."""
        raise NotImplementedError

    def layout(self) -> dict[str, Any]:
        """Keywords of the backbone that only this model has."""
        raise NotImplementedError

    def image_block(self) -> "ImageBlock":
        """The places of the image's tokens."""
        raise NotImplementedError

    def load(self, device: "str | torch.device", seed: int, frozen: bool) -> "LladaBackbone":
        import torch

        return self.backbone_class().load(
            self.checkpoint,
            self.lora_keywords(),
            device,
            seed,
            frozen=frozen,
            dtype=getattr(torch, self.dtype),
            activation_checkpointing=self.activation_checkpointing,
            prompt_length=self.prompt_length,
            vq_checkpoint=self.vq_checkpoint,
            **self.layout(),
        )

    def prompt_encoder(self) -> "Callable[[Sequence[str]], Prompts]":
        backbone = self.backbone_class()
        return partial(backbone.encode, backbone.load_tokenizer(self.checkpoint), self.prompt_length)

    def sizes(self) -> "Sizes":
        import torch

        from htgrpo_ext.backbones.llada.backbone import LladaBackbone
        from htgrpo_ext.backbones.llada.transformer import LLADA_8B, LladaConfig, LladaModel, read_config
        from htgrpo_ext.backbones.sizes import sizes_of

        config, source = LladaConfig(**dict(LLADA_8B)), f"{self.checkpoint} is not there: LLaDA-8B's sizes"
        if self.checkpoint.exists():
            config, source = read_config(self.checkpoint), None
        return sizes_of(
            self,
            lambda: LladaModel(config),
            layers=config.n_layers,
            width=config.d_model,
            ffn=config.ffn_width,
            sequence=self.prompt_length + len(self.image_block().frame_I),
            codebook=LladaBackbone.codebook_size,
            element=getattr(torch, self.dtype).itemsize,
            recomputed=self.activation_checkpointing,
            source=source,
        )

    def planned_prompts(self, count: int) -> "tuple[Prompts, Prompts]":
        from htgrpo_ext.backbones.sizes import numbered_prompts

        return numbered_prompts(count)
