"""What the settings of the models on LLaDA's transformer have in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from htgrpo_ext.backbones.settings import Lora, ModelSection
from htgrpo_ext.errors import UserError

if TYPE_CHECKING:
    from htgrpo_ext.backbones.llada.backbone import ImageBlock
    from htgrpo_ext.backbones.sizes import Sizes
    from htgrpo_ext.core.views import Prompts


class LladaModelSection(ModelSection):
    dtype: Literal["bfloat16", "float32"]
    activation_checkpointing: bool
    prompt_length: Annotated[int, Field(ge=4, le=4_096)]  # the context that LLaDA was trained with
    vq_checkpoint: Path | None

    def lora_targets(self, lora: Lora) -> list[str] | str:
        # By name alone `ff_out` would be the output head as well.
        return rf".*\.blocks\.\d+\.({'|'.join(lora.targets)})"

    def load_options(self, frozen: bool) -> dict[str, Any]:
        """Keywords of `LladaBackbone.load` that every such model has."""
        import torch

        return dict(
            checkpoint=self.checkpoint,
            lora=self.lora_keywords(),
            dtype=getattr(torch, self.dtype),
            activation_checkpointing=self.activation_checkpointing,
            prompt_length=self.prompt_length,
            vq_checkpoint=self.vq_checkpoint,
            frozen=frozen,
        )

    def image_block(self) -> "ImageBlock":
        """Where the image's tokens stand."""
        raise NotImplementedError

    def sizes(self) -> "Sizes":
        import torch

        from htgrpo_ext.backbones.llada.backbone import LladaBackbone
        from htgrpo_ext.backbones.llada.transformer import LLADA_8B, LladaConfig, LladaModel, read_config
        from htgrpo_ext.backbones.sizes import sizes_of

        source = None
        try:
            config = read_config(self.checkpoint)
        except UserError:
            if self.checkpoint.exists():
                raise
            config, source = LladaConfig(**LLADA_8B), f"{self.checkpoint} is not there: LLaDA-8B's sizes"
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
        import torch

        from htgrpo_ext.core.views import Prompts

        ids = torch.arange(count + 1)[:, None]  # any text is a prompt: one id each will do
        prompts = Prompts(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool))
        return prompts.rows(slice(count)), prompts.rows(slice(count, count + 1))
