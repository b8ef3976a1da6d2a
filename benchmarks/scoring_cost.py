"""Measure what the scoring and the updates of one cycle cost on a CPU: MaskGRPO as published beside HT-GRPO.

    scoring_cost.py [--repeats R] [--size WIDTH,LAYERS]...

One prompt, K = 8 updates, G = 9 rollouts, random codes and random unmask steps; rollouts are not measured. Both sides
run MaskGRPO's own loop on the patched tree, without and with our extension. The model is a random MMaDA in fp32 with
the real sequence (1,283 ids) and vocabulary (134,656), and the same adapters. Each measurement is a process of its
own; the two methods take turns. MaskGRPO scores its K*G rows in one batch, which a small machine cannot hold. Here it
goes rollout by rollout: 8 rows to score and 1 to update. Needs upstream/ with its patches, and Linux (peak memory from
/proc).

G rollouts, K updates, N image tokens, S sequence positions.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from measuring import KEEP_FREED, MIB, Peak, last_line
from shapes import real_shape, settings_of, tiny_checkpoint, use_stand_ins

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ makes the checkpoint and stands in for the decoder

K, G, N, S, VOCABULARY = 8, 9, 1024, 1283, 134_656
METHODS = {"maskgrpo": "MaskGRPO", "htgrpo": "HT-GRPO"}
PROMPT = "a photo of the red cat beside two dog"
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "WANDB_MODE": "disabled", **KEEP_FREED}
PARTS = ("body forward", "head forward", "body backward", "head backward", "rest")


def cycle_settings(method: str, checkpoint: Path):
    """Settings of one cycle."""
    changes = [
        *real_shape("mmada", checkpoint),
        f"out={checkpoint / 'run'}",
        "rollout.prompts_per_cycle=1",
        f"rollout.rollouts_per_prompt={G}",
        "loop.micro_batches=1",
        "loop.cycles=1",
    ]
    return settings_of("mmada", method, changes, K)


def make_trainer(settings):
    """MaskGRPO's trainer as published, or with our extension, made as for training; no image is decoded."""
    from htgrpo_ext.maskgrpo import launch

    use_stand_ins()
    trainer = launch.make_loop(settings).trainer
    trainer.create_optimizer()
    return trainer


class Meter:
    """Counts rows through the model and times its parts, by hooks on the model and on its output head."""

    def __init__(self, model):
        self.rows: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._marks: dict[str, float] = {}
        head = model.get_base_model().model.transformer.ff_out
        # On PEFT's wrapper, because one kind of it calls the inner forward without its hooks.
        model.register_forward_pre_hook(self._enter_model, with_kwargs=True)
        model.register_forward_hook(lambda *_: self._add("model", "model forward"))
        head.register_forward_pre_hook(lambda *_: self._mark("head"))
        head.register_forward_hook(lambda *_: self._add("head", "head forward"))
        head.register_full_backward_pre_hook(lambda *_: self._enter_backward())
        head.register_full_backward_hook(lambda *_: self._leave_head())

    def _mark(self, name: str) -> None:
        self._marks[name] = time.perf_counter()

    def _add(self, mark: str, part: str) -> None:
        self.seconds[part] += time.perf_counter() - self._marks[mark]

    def _enter_model(self, _, arguments, keywords) -> None:
        import torch

        ids = keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        assert ids.shape[1] == S
        self.rows["forward"] += len(ids)
        self.rows["backward"] += len(ids) * torch.is_grad_enabled()
        self._mark("model")

    def _enter_backward(self) -> None:
        self._mark("backward")  # all before it is the backward of loss and log-softmax

    def _leave_head(self) -> None:
        self._add("backward", "head backward")
        self._mark("backward")

    def backward(self, loss) -> None:
        loss.backward()
        self._add("backward", "body backward")

    def report(self, total: float) -> dict:
        parts = {part: self.seconds[part] for part in PARTS}
        parts["body forward"] = self.seconds["model forward"] - parts["head forward"]
        parts["rest"] = total - sum(parts[part] for part in PARTS[:-1])
        return {"rows": dict(self.rows), "seconds": total, "parts": parts}


def random_rollouts(seed: int):
    """Codes int64 [G, N], unmask steps int16 [G, N] and advantages float32 [G], the same for both methods."""
    import torch

    from htgrpo_ext.core.randomness import derived_generator

    generator = derived_generator("scoring cost", seed)
    codes_GN = torch.randint(8192, (G, N), generator=generator)
    step_GN = torch.randint(12, (G, N), generator=generator).to(torch.int16)
    return codes_GN, step_GN, torch.randn(G, generator=generator)


def maskgrpo_cycle(trainer, meter: Meter, rollouts: int, updates: int) -> None:
    """Scores and updates of random rollouts in MaskGRPO's own functions."""
    trainer.model.train()  # as transformers leaves it, for old and reference passes too
    codes_GN, _, advantage_G = random_rollouts(0)
    ids_1S = trainer.prepare_inputs_uni([PROMPT], "t2i", codes_GN.device)[0][:1]
    ids_GS = ids_1S.repeat(rollouts, 1)
    ids_GS[:, -N - 1 : -1] = codes_GN[:rollouts] + len(trainer.uni_prompting.text_tokenizer)
    maskgrpo_updates(trainer, maskgrpo_scores(trainer, ids_GS, advantage_G), updates, meter.backward)


def maskgrpo_scores(trainer, ids_GS, advantage_G) -> list[dict]:
    """Old and reference log-probabilities of each rollout's K masks, and what else a loss of MaskGRPO's reads.

    ids_GS  int64 [G, S], prompts and finished images
    """
    import torch

    model, batch = trainer.model, []
    for g in range(len(ids_GS)):
        ids_1S = ids_GS[g : g + 1]
        ids_K1S, seeds_K = ids_1S.expand(K, 1, -1), torch.randint(0, 2**12, (K,))
        with torch.no_grad():
            old_K1N, mask_K1N = trainer._get_per_token_logps(model, ids_K1S, N, seeds_K)
            with model.disable_adapter():
                reference_K1N, _ = trainer._get_per_token_logps(model, ids_K1S, N, seeds_K)
        batch.append(
            {
                "prompt_ids": ids_1S[:, : S - N - 2],
                "completion_ids": ids_1S[:, -N - 1 : -1],
                "completion_mask": mask_K1N.int(),
                "old_per_token_logps": old_K1N,
                "ref_per_token_logps": reference_K1N,
                "advantages": advantage_G[g : g + 1],
                "mask_seeds": seeds_K,
            }
        )
    return batch


def maskgrpo_updates(trainer, batch: list[dict], updates: int, backward: Callable) -> None:
    """K optimizer steps on the batch, in MaskGRPO's own functions."""
    for k in range(updates):
        trainer._step = k + 1  # it trains update _step - 1
        for inputs in batch:
            backward(trainer.compute_loss(trainer.model, inputs) / len(batch))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()


def htgrpo_cycle(trainer, meter: Meter, rollouts: int, updates: int) -> None:
    """The same functions with the extension behind them; all G rollouts at once."""
    import torch

    from htgrpo_ext.core.randomness import Draws
    from htgrpo_ext.core.sampler import Rollout
    from htgrpo_ext.maskgrpo.extension import Answer, MicroBatch
    from htgrpo_ext.rewards.mix import JudgedBatch
    from htgrpo_ext.train.scoring import plan_updates, score

    settings, extension, model = trainer.run.settings, trainer.extension, trainer.model.eval()
    codes_GN, step_GN, advantage_G = random_rollouts(0)
    prompts, draws = extension.backbone.encode_prompts([PROMPT] * G), Draws(settings.seed, 0, [0], G)
    rollout = Rollout(codes_GN, step_GN, torch.zeros(G, N))
    batch, planned = plan_updates(settings, rollout, prompts, draws)
    scores = score(settings, extension.backbone, extension.forward, prompts, codes_GN, planned, 0)
    judged = JudgedBatch(advantage_G, advantage_G, torch.ones(G, dtype=torch.bool), any_kept=True, metrics={})
    micro = MicroBatch(0, [{}] * G, prompts, rollout, batch, planned, scores, judged)
    extension.cycle, extension.results = [micro], []
    inputs = {
        "micro_batch": micro,
        "prompt_ids": prompts.ids_BL,
        "completion_ids": codes_GN,
        "completion_mask": torch.stack([update.target_BN for update in planned]).int(),
        "old_per_token_logps": Answer(extension, "old"),
        "ref_per_token_logps": Answer(extension, "reference"),
        "advantages": advantage_G,
        "mask_seeds": [0] * K,  # never read
    }
    for k in range(updates):
        trainer.state.global_step = k
        meter.backward(trainer.compute_loss(model, inputs))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()


CYCLES: dict[str, Callable] = {"maskgrpo": maskgrpo_cycle, "htgrpo": htgrpo_cycle}


def measure(method: str, checkpoint: Path) -> dict:
    """Load, warm up by one update, measure one cycle."""
    trainer = make_trainer(cycle_settings(method, checkpoint))
    meter = Meter(trainer.model)
    CYCLES[method](trainer, meter, 1, 1)
    meter.rows.clear()
    meter.seconds.clear()
    peak, start = Peak(), time.perf_counter()
    CYCLES[method](trainer, meter, G, K)
    seconds = time.perf_counter() - start
    assert meter.rows["forward"] and meter.seconds["head backward"], "a hook was never called"
    return meter.report(seconds) | {"peak": peak.over() / MIB}


def in_process(method: str, checkpoint: Path) -> dict:
    """`measure` in a process of its own."""
    return last_line([sys.executable, __file__, "--child", method, checkpoint], ENVIRONMENT)


def row(name: str, first, second, ratio: str = "") -> str:
    return f"| {name} | {first} | {second} | {ratio} |"


def table(runs: dict[str, list[dict]]) -> str:
    """Medians over the repetitions."""
    ours, theirs = runs["htgrpo"], runs["maskgrpo"]
    lines = [row("", METHODS["maskgrpo"], METHODS["htgrpo"], "ratio"), "|---|---|---|---|"]

    def add(name: str, value: Callable[[dict], float], digits: int) -> None:
        a, b = median(map(value, theirs)), median(map(value, ours))
        lines.append(row(name, f"{a:,.{digits}f}", f"{b:,.{digits}f}", f"{a / b:.1f}" if b else ""))

    add("forward rows", lambda r: r["rows"]["forward"], 0)
    add("backward rows", lambda r: r["rows"]["backward"], 0)
    add("forward-equivalents (backward = 2)", lambda r: r["rows"]["forward"] + 2 * r["rows"]["backward"], 0)
    add("seconds", lambda r: r["seconds"], 2)
    for part in PARTS:
        add(f"- {part}", lambda r, part=part: r["parts"][part], 2)
    add("peak over the loaded model, MiB", lambda r: r["peak"], 0)
    pairs = ", ".join(f"{a['seconds'] / b['seconds']:.1f}" for a, b in zip(theirs, ours, strict=True))
    lines.append(f"\nratio of seconds, pair by pair: {pairs}")
    return "\n".join(lines)


def main() -> None:
    from htgrpo_ext.errors import UserError

    parser = argparse.ArgumentParser(description="Scoring and updates of one cycle: MaskGRPO beside HT-GRPO")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--size", action="append", help="WIDTH,LAYERS of the random model (default 32,2)")
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "CHECKPOINT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], Path(options.child[1]))))
        return
    try:
        from htgrpo_ext.maskgrpo.launch import require_upstream

        require_upstream()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    own = K * G * S * VOCABULARY * 4 / 1e9
    print(f"MaskGRPO's own batch: logits of {K * G} x {S} x {VOCABULARY} in fp32 are {own:.1f} GB; measured by rollout")
    for size in options.size or ["32,2"]:
        width, layers = map(int, size.split(","))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = tiny_checkpoint("mmada", Path(folder) / "mmada", width, layers)
            runs: dict[str, list[dict]] = {method: [] for method in METHODS}
            for _ in range(options.repeats):
                for method, results in runs.items():
                    results.append(in_process(method, checkpoint))
                    print(f"{size} {METHODS[method]}: {results[-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        print(f"\nwidth {width}, {layers} layers, {options.repeats} interleaved repetitions (medians)\n\n{table(runs)}")


if __name__ == "__main__":
    main()
