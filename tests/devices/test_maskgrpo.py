"""MaskGRPO's loop on an accelerator: the answers to its hooks without its code, and whole runs where it is there."""

import math

import pytest
import torch

from helpers.llada_runs import settings_of
from helpers.micro_runs import records, tiny_settings
from helpers.upstream_runs import needs_upstream
from helpers.upstream_stub import Brightness
from htgrpo_ext.core.views import add_up
from htgrpo_ext.maskgrpo.extension import Extension
from htgrpo_ext.maskgrpo.launch import CycleRows
from htgrpo_ext.train import native
from htgrpo_ext.workflow.train import train

METHODS = ["d1", "htgrpo", "maskgrpo", "tracegrpo"]
LORA = ["model.tuning=lora", "model.lora.rank=2"]


@pytest.mark.parametrize("method", METHODS)
def test_answers_to_the_hooks(method, device, on, checkpoint, tmp_path):
    """A rollout batch and two optimizer steps as the trainer asks for them; the losses are those of the CPU."""
    losses = {}
    for place in (device, "cpu"):
        on(place)
        loop = native.start(tiny_settings(method, checkpoint, tmp_path / place, "loop.micro_batches=1"))
        extension = Extension(loop.run, loop.backbone, loop.forward)
        rows = CycleRows(loop.run.settings, loop.run.prompts)
        with loop.run.progress:
            micro = extension.roll_out([rows[i] for i in range(rows.rows)])
        for step in range(2):
            extension.enter(micro, step)
            log_probs, mask_BN = extension.log_probs(extension.index), extension.loss_mask(extension.index)
            assert {t.device.type for t in (*log_probs, mask_BN, micro.judged.advantage_B)} == {place}
            gain_BN = extension.weight(extension.index) * micro.judged.advantage_B[:, None]
            ratio_BN = (log_probs.new_BN - log_probs.old_BN).exp()
            loss = -(ratio_BN * gain_BN * mask_BN).sum() / mask_BN.sum() * extension.kept_share()
            loss.backward()
            extension.record(loss, micro.judged.advantage_B)
            loop.optimizer.step()
        loop.run.log.close()
        losses[place] = add_up(torch.stack(result[:2]).cpu() for result in extension.results)  # loss, KL
    torch.testing.assert_close(losses[device], losses["cpu"], rtol=1e-3, atol=1e-5)


class TestWithItsCode:
    pytestmark = needs_upstream

    @pytest.mark.parametrize("more", [[], LORA], ids=["full", "lora"])
    def test_a_run_gives_the_numbers_of_the_cpu(self, more, device, on, checkpoint, tmp_path):
        for place in (device, "cpu"):
            on(place)
            train(tiny_settings("htgrpo", checkpoint, tmp_path / place, *more), "upstream")
        there, here = (records(tmp_path / place, "update") for place in (device, "cpu"))
        for a, b in zip(there, here, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)

    @pytest.mark.parametrize("method", ["htgrpo", "tracegrpo"])
    def test_a_large_model_in_bfloat16_trains_there(self, method, lumina_folder, tmp_path, monkeypatch):
        """Adapters in float32 on frozen weights in bfloat16, two cycles and checkpoints."""
        monkeypatch.setattr("htgrpo_ext.rewards.mix.load_scorer", lambda term, device: Brightness())
        # transformers asks for a GPU that can do it.
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        monkeypatch.setattr("accelerate.accelerator.is_bf16_available", lambda ignore_tpu=False: True)
        more = ["loop.save_steps=1", "rollout.prompts_per_cycle=2", "loop.micro_batches=2"]
        train(settings_of("lumina", method, lumina_folder, tmp_path / "run", "model.dtype=bfloat16", *more), "upstream")
        updates = records(tmp_path / "run", "update")
        assert len(updates) == 4 and updates[0]["ratio_max"] == pytest.approx(1.0, abs=1e-6)
        assert all(math.isfinite(value) for u in updates for value in u.values() if isinstance(value, float))
