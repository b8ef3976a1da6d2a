"""Algorithm 1 of the paper on Hugging Face accelerate: roll out, score, compare within groups, K staged updates.

`train_cycle` is the algorithm; the rest of this file is what surrounds it. One process as it stands, several under
torchrun: every process takes its share of each cycle's prompts, and the noise of a prompt is the same
wherever it is drawn. Dropout is off throughout, because log-probabilities are compared.

P prompts, G rollouts per prompt, B = P*G, N image tokens, K updates.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from htgrpo_ext.backbones.micro import MicroBackbone
from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import Objective, policy_objective
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import Update
from htgrpo_ext.errors import UserError
from htgrpo_ext.eval.evaluate import evaluate
from htgrpo_ext.eval.report import write_report
from htgrpo_ext.eval.summary import write_summary
from htgrpo_ext.prompts.sources import PromptSources
from htgrpo_ext.rewards.mix import Judged, Rewards
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from htgrpo_ext.train.log import MetricsLog, flatten
from htgrpo_ext.train.progress import TrainingProgress
from htgrpo_ext.train.rollout import generate, mean_entropy
from htgrpo_ext.train.scoring import plan_updates, score_micro_batches

# Between a run and its continuation. Of rewards: where they run and how patiently they are asked, not what they are.
MAY_CHANGE = {"name", "label", "out", "loop.cycles", "loop.save_steps"} | {
    f"reward.{key}" for key in ("on_failure", "max_failed_share", "retries", "deadline", "overlap")
}
TERM_MAY_CHANGE = {"url", "protocol", "batch_size", "timeout"}


@dataclass
class Run:
    """What a training run carries from cycle to cycle."""

    settings: RunSettings
    accelerator: Accelerator
    backbone: MicroBackbone
    forward: SharedForward
    optimizer: torch.optim.Optimizer
    log: MetricsLog
    progress: TrainingProgress
    prompts: PromptSources
    rewards: Rewards
    seconds: dict[str, float] = field(default_factory=dict)  # of this cycle, by part

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def train_cycle(run: Run, cycle: int) -> None:
    """One pass of Algorithm 1: a batch of rollouts, and K updates on it."""
    settings, method, loop = run.settings, run.settings.method, run.settings.loop
    G, K, A = settings.rollout.rollouts_per_prompt, loop.updates_per_rollout, loop.micro_batches
    run.seconds.clear()
    run.forward.rows.clear()

    # Roll out: this process's share of the cycle's prompts, G images each.
    share = process_share(run.accelerator, settings.rollout.prompts_per_cycle)
    prompts = [p for p in run.prompts.cycle(cycle)[share.start : share.stop] for _ in range(G)]
    rows = run.backbone.encode_prompts([p["prompt"] for p in prompts])
    draws = Draws(settings.seed, cycle, share, G)
    with run.timed("rollout"):
        rollout = generate(run.backbone, run.forward, rows, draws, settings.rollout)
    with run.timed("reward"):
        pending = run.rewards.begin(prompts, rollout.codes_BN, lambda: run.backbone.decode(rollout.codes_BN))

    # Plan the K updates (what is visible, what is a target, what it weighs), and score under the old and the
    # reference policy, micro-batch by micro-batch, while reward servers are at work.
    batch, updates = plan_updates(settings, rollout, rows, draws)
    with run.timed("score"):
        scored = score_micro_batches(settings, run.backbone, run.forward, rows, rollout.codes_BN, updates)

    # Compare within groups. A group that a reward failed to score has no part in what follows.
    with run.timed("reward"):
        judged = run.rewards.finish(pending)

    # Update K times. All micro-batches of an optimizer step train the same update (but for MaskGRPO as published).
    for k in range(K if judged.any_kept else 0):
        run.progress.update(k, updates[k].stage)
        with run.timed("update"):
            results = []
            for a, (part, scores) in enumerate(scored):
                index = method.update_index(k, a, A, K)
                update, new_BN = scores.updates[index], scores.new(index)
                result = policy_objective(
                    new_BN,
                    scores.old[index],
                    scores.reference[index] if scores.reference else None,
                    judged.advantage_B[part],
                    update.weight_BN,
                    update.target_BN,
                    loop.clip_epsilon,
                    loop.kl_coefficient,
                    method.average,
                    judged.kept_B[part],
                )
                run.accelerator.backward(result.loss / A)
                results.append(result)
            step = cycle * K + k
            norm = optimizer_step(run, step)
        log_update(run, cycle, k, step, updates[k], results, norm)
    log_cycle(run, cycle, judged, mean_entropy(rollout, batch))
    if cycle == loop.cycles - 1 and run.accelerator.is_main_process:
        save_shown_rollout(settings.folder, prompts[0], judged.reward_B[0].item(), rollout, batch.rank_BN, updates)


def process_share(accelerator: Accelerator, count: int) -> range:
    """The global indices of this process's prompts."""
    each = count // accelerator.num_processes
    return range(accelerator.process_index * each, (accelerator.process_index + 1) * each)


def optimizer_step(run: Run, step: int) -> float:
    """Clip, step, clear; constant rate after a linear warm-up. Returns the gradient norm before clipping."""
    loop = run.settings.loop
    norm = run.accelerator.clip_grad_norm_(run.backbone.model.parameters(), loop.max_grad_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = loop.learning_rate * min(1.0, (step + 1) / (loop.warmup_updates + 1))
    run.optimizer.step()
    run.optimizer.zero_grad()
    return float(norm)


def log_update(
    run: Run, cycle: int, k: int, step: int, update: Update, results: Sequence[Objective], norm: float
) -> None:
    """One line of metrics, averaged over micro-batches and processes; the largest ratio is the largest of all."""
    stacked = torch.stack([torch.stack([value.detach() for value in result]) for result in results])
    gathered = run.accelerator.gather(stacked.unsqueeze(0)).flatten(0, 1)
    means = dict(zip(Objective._fields, gathered.mean(0).tolist(), strict=True))
    record = {
        "kind": "update",
        "cycle": cycle,
        "update": k,
        "step": step + 1,
        "stage": update.stage,
        "support": (update.target_BN > 0).float().sum(-1).mean().item(),
        **means,
        "ratio_max": gathered[:, Objective._fields.index("ratio_max")].max().item(),
        "grad_norm": norm,
        "learning_rate": run.optimizer.param_groups[0]["lr"],
    }
    run.log.write(record, step + 1)


def log_cycle(run: Run, cycle: int, judged: Judged, entropies: tuple[float, float]) -> None:
    """One line of metrics about the rollout batch, over all processes."""
    gather, device = run.accelerator.gather, judged.reward_B.device
    record: dict = {"kind": "cycle", "cycle": cycle, **judged.metrics}
    structure, refinement = gather(torch.tensor([entropies], device=device)).mean(0).tolist()
    record |= {"entropy_structure": structure, "entropy_refinement": refinement}
    kinds = ("rollout", "old", "reference", "new")
    rows = gather(torch.tensor([[run.forward.rows[kind] for kind in kinds]], device=device)).sum(0).tolist()
    record |= {"forwards": dict(zip(kinds, rows, strict=True)), "seconds": dict(run.seconds)}
    run.log.write(record, (cycle + 1) * run.settings.loop.updates_per_rollout)
    run.progress.cycle(record)


def save_shown_rollout(
    folder: Path, prompt: dict, reward: float, rollout: Rollout, rank_BN: Tensor, updates: Sequence[Update]
) -> None:
    """Keep the first rollout with its ranks and support sets, for the report."""
    np.savez_compressed(
        folder / "rollout.npz",
        codes=rollout.codes_BN[0].cpu().numpy(),
        rank=rank_BN[0].cpu().numpy(),
        supports=np.stack([update.target_BN[0].cpu().numpy() for update in updates]),
        stages=np.array([update.stage for update in updates]),
    )
    (folder / "rollout.json").write_text(json.dumps({"prompt": prompt["prompt"], "reward": reward}))


def prepare(settings: RunSettings) -> Run:
    """Check the batch against the number of processes, prompts and reward servers, then load the model."""
    accelerator = Accelerator()
    if problems := settings.problems(accelerator.num_processes):
        raise UserError("\n".join(problems))
    prompts = PromptSources(settings)
    rewards = Rewards(settings.reward, accelerator, settings.rollout.rollouts_per_prompt)
    rewards.check()
    model, loop = settings.model, settings.loop
    lora = None
    if model.tuning == "lora":
        lora = dict(
            r=model.lora.rank,
            lora_alpha=model.lora.alpha,
            lora_dropout=model.lora.dropout,
            target_modules=list(model.lora.targets),
        )
    backbone = MicroBackbone.load(model.checkpoint, lora, accelerator.device, seed=settings.seed)
    backbone.model.eval()
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=loop.learning_rate, betas=loop.adam_betas, weight_decay=loop.weight_decay)
    wrapped, optimizer = accelerator.prepare(backbone.model, optimizer)
    backbone.route_through(wrapped)
    log = MetricsLog(settings, enabled=accelerator.is_main_process)
    forward = SharedForward(backbone.image_logits, backbone.mask_id, loop.batch_size)
    progress = TrainingProgress(settings, enabled=accelerator.is_main_process)
    return Run(settings, accelerator, backbone, forward, optimizer, log, progress, prompts, rewards)


def refuse_other_settings(settings: RunSettings, saved: RunSettings) -> None:
    """UserError if a run would be continued with settings that make it another one; more cycles are fine."""
    unlike = {"reward": {"terms": {"__all__": TERM_MAY_CHANGE}}}
    now, then = (flatten(s.model_dump(mode="json", exclude=unlike), ".") for s in (settings, saved))
    changed = [key for key in now.keys() | then.keys() if now.get(key) != then.get(key)]
    changed = sorted(key for key in changed if key not in MAY_CHANGE and not key.startswith("log."))
    if changed:
        key = changed[0]
        raise UserError(
            f"{settings.folder}: the run there has {key} {then.get(key)}, not {now.get(key)}; "
            "continue it with the settings of its config.yaml, or give another `out`"
        )


def resume_or_start(run: Run, resume: bool) -> int:
    """The cycle to begin with, weights and optimizer loaded if there is a checkpoint."""
    folder, main = run.settings.folder, run.accelerator.is_main_process
    checkpoints = complete_checkpoints(folder / "checkpoints")
    if checkpoints and not resume:
        raise UserError(f"{folder}: a run is there already; continue it with --resume, or give another `out`")
    cycle = 0
    if checkpoints:
        refuse_other_settings(run.settings, load_settings([folder / "config.yaml"]))
        model = run.accelerator.unwrap_model(run.backbone.model)
        cycle = load_checkpoint(checkpoints[-1], model, run.optimizer)
    run.accelerator.wait_for_everyone()  # before the folder is written to, everyone has looked at it
    if main:
        if cycle == 0:  # a killed run's evaluation may have had other settings
            shutil.rmtree(folder / "eval", ignore_errors=True)
        save_settings(run.settings, folder / "config.yaml")
    run.log.open(from_cycle=cycle)
    run.accelerator.wait_for_everyone()  # all see the folder as it is now
    return cycle


def train(settings: RunSettings, resume: bool = False) -> Path:
    """Train, evaluate before and after, write summary and report. Returns the run's folder.

    Raises UserError for an impossible batch, a missing checkpoint, or a folder that holds a run (without `resume`).
    """
    run = prepare(settings)
    main, folder, loop = run.accelerator.is_main_process, settings.folder, settings.loop
    folder.mkdir(parents=True, exist_ok=True)
    first = resume_or_start(run, resume)
    seconds = {}
    with run.progress:
        if not (folder / "eval" / "base.npz").exists():
            with run.backbone.reference():
                seconds["evaluation"] = evaluate(run.backbone, settings, run.accelerator, run.progress, "base")
        for cycle in range(first, loop.cycles):
            train_cycle(run, cycle)
            if main and ((cycle + 1) % loop.save_steps == 0 or cycle + 1 == loop.cycles):
                model = run.accelerator.unwrap_model(run.backbone.model)
                save_checkpoint(folder / "checkpoints", cycle + 1, model, run.optimizer)
            run.accelerator.wait_for_everyone()
        seconds["evaluation"] = seconds.get("evaluation", 0.0) + evaluate(
            run.backbone, settings, run.accelerator, run.progress, "trained"
        )
    run.log.close()
    if main:
        run.accelerator.unwrap_model(run.backbone.model).save_pretrained(folder / "model")
        summary = write_summary(folder, settings, peak_memory(), seconds)
        report = write_report(folder)
        print_result(summary, folder / "summary.json", report)
    return folder


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def print_result(summary: dict, path: Path, report: Path) -> None:
    """The one line the user came for, and where to look."""

    def text(part: dict) -> str:
        low, high = part["interval"]
        return f"{part['overall']:.3f} [{low:.3f}, {high:.3f}]"

    print(f"{report}\n{path}")
    print(f"MicroEval  base {text(summary['base'])} → trained {text(summary['trained'])}  gain {summary['gain']:+.3f}")
