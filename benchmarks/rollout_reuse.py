"""The two rollouts that are faster and not exact (docs/rollouts.md): speed, distance from the exact law, and the score.

    rollout_reuse.py [--case micro] [--case micro-guided] [--case mmada] [--rounds 3] [--out FILE.json]
    rollout_reuse.py --train 40 --seeds 3 [--case micro] [--out FILE.json] [--runs FOLDER]
    rollout_reuse.py --plot docs/rollout-reuse.png --out FILE.json

micro         a micro-batch of the default run: 6 prompts, 9 images each, 8 steps, no guidance
micro-guided  the same with guidance 1
mmada         as in rollout_speed.py: random weights, width 64, real sequence and vocabulary, 12 steps, guidance 3.5

Speed: CPU seconds of whole rollouts in one process and thread. All settings take turns in each round; a ratio is exact
over this one in the same round, and the median of the rounds counts. The rows are counted beside.

Distance: in one rollout of each setting, at each step, on the canvas that the setting has come to: KL(law drawn from ||
exact law) in nats, the mean over the tokens drawn in that step. `kl` is the mean over all tokens. For an interval the
exact law has guidance in all steps: it is another law on purpose, not a worse copy of the same one.

Score: HT-GRPO's default run of the micro model with the setting, so many cycles and seeds; MicroEval before and after,
whose own rollouts are exact. What is in FILE.json already stays there, and is not trained again.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # makes the checkpoint

import torch
from rollout_speed import model_of

from htgrpo_ext.config import load_settings
from htgrpo_ext.core import drawing
from htgrpo_ext.core.drawing import Drawing
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.reuse import ReusingDrawing
from htgrpo_ext.core.sampler import SAMPLERS, draw_codes
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import Reuse, RolloutSettings

ROOT = Path(__file__).parents[1]
REUSES = {f"reuse {refresh}": {"reuse": Reuse(refresh=refresh)} for refresh in (2, 3, 4)}
INTERVALS = {
    "guidance from 1/3": {"guidance_interval": (0.33, 1.0)},
    "guidance from 1/2": {"guidance_interval": (0.5, 1.0)},
    "guidance to 2/3": {"guidance_interval": (0.0, 0.66)},
    "guidance from 1/3, reuse 3": {"guidance_interval": (0.33, 1.0), "reuse": Reuse(refresh=3)},
}
CASES: dict[str, dict[str, dict]] = {
    "micro": {"exact": {}, **REUSES},
    "micro-guided": {"exact": {}, **REUSES, **INTERVALS},
    "mmada": {"exact": {}, **REUSES, **INTERVALS},
}


def settings_of(case: str, rollout: RolloutSettings) -> dict[str, RolloutSettings]:
    """The rollout's settings of a case, by name."""
    guided = {"guidance": 1.0} if case == "micro-guided" else {}
    return {name: rollout.model_copy(update=guided | more) for name, more in CASES[case].items()}


class Model:
    """The model of a case, and what its rollouts need."""

    def __init__(self, case: str, folder: Path, images: int):
        self.backbone, self.rows, G, run = model_of(case.removesuffix("-guided"), ROOT, folder, images, prompts=0)
        self.settings, self.loop = settings_of(case, run.rollout), run.loop
        self.draws = Draws(0, 0, range(len(self.rows.ids_BL) // G), G)

    def forward(self) -> SharedForward:
        return SharedForward(self.backbone.image_logits, self.backbone.mask_id, self.loop.batch_size)

    @torch.no_grad()
    def measured(self, settings: RolloutSettings) -> dict:
        """CPU seconds and rows of one rollout."""
        forward, start = self.forward(), time.process_time()
        generate(self.backbone, forward, self.rows, self.draws, settings, settings.refresh)
        return {"seconds": time.process_time() - start, "rows": dict(forward.rows)}

    @torch.no_grad()
    def distance(self, settings: RolloutSettings) -> dict:
        """KL of each step, and of all tokens; and the tokens drawn in each step."""
        tokens, nobody, exact = self.backbone.num_image_tokens, self.backbone.unconditional(), self.forward()
        guided, steps = (self.rows, nobody, settings.guidance), range(settings.steps)
        reuses = ReusingDrawing(self.forward(), *guided, settings.guided_steps, tokens, settings.refresh)
        beside = Drawing(exact, *guided, steps)
        kl: list[float] = []
        counts: list[int] = []

        def both(*step):
            with laws() as drawn:
                found = reuses(*step)
            with laws() as expected:
                beside(*step)
            pairs = zip(torch.cat(drawn).split(1024), torch.cat(expected).split(1024), strict=True)
            kl.append(sum(float((q.exp() * (q - p)).sum().double()) for q, p in pairs))
            counts.append(len(found.code_M))
            return found

        uniform = lambda step: self.draws.uniform("rollout", step, shape=(2, tokens))  # noqa: E731
        SAMPLERS["emerge"](both, uniform, (len(self.rows.ids_BL), tokens), settings.steps)
        by_step = [total / count for total, count in zip(kl, counts, strict=True)]
        return {"kl": sum(kl) / sum(counts), "kl_by_step": by_step, "tokens_by_step": counts}


@contextmanager
def laws():
    """Inside, the log-laws [m, V] that codes are drawn from are put into the list; both drawings have one order."""
    seen: list[torch.Tensor] = []

    def watched(logits_mV, uniform_m):
        seen.append(logits_mV.float().log_softmax(-1))
        return draw_codes(logits_mV, uniform_m)

    with patch.object(drawing, "draw_codes", watched):
        yield seen


def compared(case: str, rounds: int, images: int) -> dict:
    """Speed and distance of each setting of a case."""
    with tempfile.TemporaryDirectory() as folder:
        model = Model(case, Path(folder), images)
        model.measured(model.settings["exact"])  # to warm up
        runs: dict[str, list[dict]] = {name: [] for name in model.settings}
        for _ in range(rounds):
            for name, settings in model.settings.items():
                runs[name].append(model.measured(settings))
                print(f"{case}, {name}: {runs[name][-1]['seconds']:.2f} CPU s", file=sys.stderr, flush=True)
        found = {}
        for name, settings in model.settings.items():
            ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs["exact"], runs[name], strict=True)]
            seconds = [each["seconds"] for each in runs[name]]
            found[name] = {
                "faster": median(ratios),
                "ratios": ratios,
                "seconds": seconds,
                "rows": runs[name][-1]["rows"],
            }
            found[name] |= model.distance(settings)
            print(f"{case}, {name}: {median(ratios):.2f} times as fast, KL {found[name]['kl']:.2g}", flush=True)
    return found


def trained(case: str, name: str, seed: int, cycles: int, runs: Path) -> dict:
    """The score of a run before and after, its last reward and its seconds of rollout."""
    from htgrpo_ext.workflow.train import train

    more = CASES[case][name] | ({"guidance": 1.0} if case == "micro-guided" else {})
    sets = [f"rollout.{key}={json.dumps(_plain(value))}" for key, value in more.items()]
    out = runs / f"{case}-{name.replace(' ', '-').replace('/', '')}-s{seed}"
    sets += [f"seed={seed}", f"loop.cycles={cycles}", f"out={out}", "log.tensorboard=false"]
    train(load_settings([ROOT / "configs/model/micro.yaml", ROOT / "configs/method/htgrpo.yaml"], sets))
    summary = json.loads((out / "summary.json").read_text())
    return {key: summary[key] for key in ("base", "trained", "reward", "seconds", "forwards", "cycles")}


def _plain(value):
    return value.model_dump() if isinstance(value, Reuse) else value


def write_plot(found: dict, path: Path) -> None:
    """KL by step for each case, and speed against KL."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    cases = [case for case in CASES if case in found]
    figure, axes = pyplot.subplots(1, len(cases), figsize=(4.5 * len(cases), 4.4), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        for name, each in found[case].items():
            if name != "exact":
                steps = range(1, len(each["kl_by_step"]) + 1)
                axis.plot(steps, each["kl_by_step"], marker=".", label=f"{name}: {each['faster']:.2f} x")
        axis.set(title=case, xlabel="denoising step", ylabel="KL from the exact law, nats a token", yscale="symlog")
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=2, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rollouts that are faster and not exact")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all; of training: micro")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=0, help="images per prompt, if not the case's own")
    parser.add_argument("--train", type=int, metavar="CYCLES", help="train instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/rollout-reuse"), help="folder of the trained runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/rollout_reuse.json")
    parser.add_argument("--plot", type=Path, help="only draw what --out has")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}

    def keep() -> None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")

    if options.plot:
        write_plot(found, options.plot)
        return
    if options.train is None:
        for case in options.case or CASES:
            found[case] = compared(case, options.rounds, options.images)
            found["date"] = date.today().isoformat()
            keep()
        return
    for case in options.case or ["micro"]:
        scores = found.setdefault("trained", {}).setdefault(f"{case}, {options.train} cycles", {})
        for seed in range(options.seeds):  # seed by seed, so that an early end has pairs
            for name in CASES[case]:
                runs = scores.setdefault(name, {})
                if str(seed) not in runs:
                    runs[str(seed)] = trained(case, name, seed, options.train, options.runs)
                    keep()
        for name, runs in scores.items():
            after = [run["trained"]["overall"] for run in runs.values()]
            print(f"{case}, {name}: {mean(after):.3f} ({', '.join(f'{score:.3f}' for score in after)})")


if __name__ == "__main__":
    main()
