"""The plan's numbers, counted by hand. P prompts, G rollouts, K updates, T steps; rows are per prompt and cycle."""

import pytest

from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.order import tie_places
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.errors import UserError
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.workflow.plan import DEVICES, ROLLOUT, evaluation_seconds, plan, print_plan, seconds
from htgrpo_ext.workflow.simulation import KINDS, StubBackbone, naive_rows, simulate

P, G, K, T = 2, 3, 8, 4


def settings_of(method: str, *overrides: str) -> RunSettings:
    sizes = [f"rollout.prompts_per_cycle={P}", f"rollout.rollouts_per_prompt={G}", f"rollout.steps={T}"]
    files = [CONFIGS / "model/micro.yaml", CONFIGS / f"method/{method}.yaml"]
    return load_settings(files, [*sizes, *overrides])


def wide_backbone(num_image_tokens: int = 20_000) -> StubBackbone:
    """So many tokens that two random masks are never the same, not even at a ratio of 0.999."""
    import torch

    ids = torch.tensor([[0, 1, p + 2, 9] for p in range(P + 1)])
    prompts = Prompts(ids, ids > 0, ids > 1)
    return StubBackbone(prompts.rows(slice(P)), prompts.rows(slice(P, P + 1)), num_image_tokens)


def rows_per_prompt(settings: RunSettings) -> dict[str, float]:
    return {kind: n / P for kind, n in simulate(settings, wide_backbone())[1].items()}


@pytest.mark.parametrize("tokens", [64, 20_000])
def test_htgrpo_scores_a_prompt_in_k_plus_one_rows(tokens):
    rows = simulate(settings_of("htgrpo"), wide_backbone(tokens))[1]
    assert [rows[kind] / P for kind in KINDS[1:]] == [0, 1, K]


def test_htgrpo_without_kl_needs_no_reference():
    assert rows_per_prompt(settings_of("htgrpo", "loop.kl_coefficient=0"))["reference"] == 0


def test_maskgrpo_scores_a_prompt_in_3kg_rows():
    rows = rows_per_prompt(settings_of("maskgrpo"))
    assert [rows[kind] for kind in KINDS[1:]] == [K * G, K * G, K * G]


def test_maskgrpo_fixed_needs_no_old_pass_for_its_first_update():
    rows = rows_per_prompt(settings_of("maskgrpo-fixed"))
    assert [rows[kind] for kind in KINDS[1:]] == [(K - 1) * G, K * G, K * G]


def test_tracegrpo_runs_every_view_of_every_update():
    """Its first view shows nothing: one row for all G. Old is free and the reference the same for all updates."""
    rows = rows_per_prompt(settings_of("tracegrpo"))
    views = 1 + (T - 1) * G
    assert [rows[kind] for kind in KINDS[1:]] == [0, views, K * views]


def test_unshared_every_method_costs_three_passes_over_its_views():
    for method, views in {"htgrpo": 1, "maskgrpo": 1, "maskgrpo-fixed": 1, "d1": 1, "tracegrpo": T, "agrpo": 2}.items():
        settings = settings_of(method)
        naive = naive_rows(settings, simulate(settings, wide_backbone())[0])
        assert naive == {"rollout": P * G * T} | dict.fromkeys(KINDS[1:], P * G * K * views), method


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_micro_batches_change_the_rows_held_at_once_and_not_those_run(micro_batches):
    found = simulate(settings_of("htgrpo", f"loop.micro_batches={micro_batches}"), wide_backbone())
    rows, at_once, positions = found.rows, found.rows_at_once, found.positions_at_once
    assert rows["new"] == K * P and at_once == P // micro_batches
    assert positions == at_once * 20_000  # the first update asks for every position of its row


def test_the_first_sampler_step_is_one_row_a_prompt_and_guidance_adds_one_for_all():
    settings = settings_of("htgrpo", "rollout.guidance=0")
    assert simulate(settings, wide_backbone())[1]["rollout"] == P * (1 + (T - 1) * G)
    guided = simulate(settings_of("htgrpo", "rollout.guidance=3.5"), wide_backbone())[1]["rollout"]
    assert guided == P * (1 + (T - 1) * G) + 1 + P * (T - 1) * G
    assert naive_rows(settings_of("htgrpo", "rollout.guidance=3.5"), [])["rollout"] == 2 * P * G * T


def test_guidance_in_half_of_the_steps_saves_half_of_the_unconditional_rows():
    late = settings_of("htgrpo", "rollout.guidance=3.5", "rollout.guidance_interval=[0.5, 1]")
    assert simulate(late, wide_backbone())[1]["rollout"] == P * (1 + (T - 1) * G) + P * G * T // 2
    assert naive_rows(late, [])["rollout"] == P * G * (T + T // 2)
    early = settings_of("htgrpo", "rollout.guidance=3.5", "rollout.guidance_interval=[0, 0.5]")
    assert simulate(early, wide_backbone())[1]["rollout"] == P * (1 + (T - 1) * G) + 1 + P * G * (T // 2 - 1)


def test_reuse_counts_whole_rows_and_the_positions_of_the_others(capsys):
    """Steps 0 and 2 of 4 are whole; 1 and 3 compute the tokens of two steps: all tokens in the end."""
    settings = settings_of("htgrpo", "rollout.reuse.refresh=2")
    found = simulate(settings, wide_backbone(500))
    assert found.rows["rollout"] == P * (1 + G)
    assert found.reused.rows == P * G * 2 and found.reused.computed == P * G * 500
    plain = simulate(settings_of("htgrpo"), wide_backbone(500))
    # The first step is shared; of the others each token is wanted once, in a whole row or in a reusing one.
    assert found.rollout_positions + found.reused.wanted == plain.rollout_positions
    planned = plan(settings)
    assert planned.reused_cost() == pytest.approx(planned.reused.computed / 78)
    print_plan(settings)
    printed = capsys.readouterr().out
    assert "reuse: 6.0 rollout rows more, each of 32 positions in place of 78" in printed


def test_reuse_saves_time_and_costs_memory():
    settings = {
        refresh: load_settings(
            [CONFIGS / "model/mmada.yaml", CONFIGS / "method/htgrpo.yaml"],
            ["model.checkpoint=nowhere", "rollout.prompts_per_cycle=8", f"rollout.reuse.refresh={refresh}"],
        )
        for refresh in (1, 3)
    }
    exact, reused = (plan(each) for each in settings.values())
    device = DEVICES[0]
    assert seconds(reused, device)["rollout"] < 0.6 * seconds(exact, device)["rollout"]
    # 8 images and 8 without a prompt, and one: 1,283 positions, 32 layers, keys and values of 4,096 numbers, bfloat16
    assert reused.memory[ROLLOUT] - exact.memory[ROLLOUT] == 17 * 1283 * 32 * 2 * 4096 * 2


def test_the_updates_of_htgrpo_are_those_of_the_paper():
    planned = plan(settings_of("htgrpo"))
    assert [u.stage for u in planned.updates] == ["global"] * 2 + ["structure"] * 4 + ["refinement"] * 2
    assert [u.rate for u in planned.updates] == pytest.approx([1, 0.5, 1, 5 / 6, 4 / 6, 0.5, 1, 0.5])
    # N = 64, N_s = round(19.2) = 19: ceil of 64, 32; 19, 15.8, 12.7, 9.5; 45, 22.5
    sizes = [64, 32, 19, 16, 13, 10, 45, 23]
    assert [(u.smallest, u.largest) for u in planned.updates] == [(n, n) for n in sizes]
    assert all(u.views == 1 for u in planned.updates)


def test_the_cost_counts_a_new_row_three_times():
    planned = plan(settings_of("htgrpo"))
    rollout, old, reference, new = (planned.rows[kind] for kind in KINDS)
    assert planned.cost(planned.rows) == rollout + old + reference + 3 * new


def test_memory_counts_what_is_trained():
    full, lora = (plan(settings_of("htgrpo", f"model.tuning={tuning}")).memory for tuning in ("full", "lora"))
    # AdamW keeps two numbers a weight; full fine-tuning copies the reference, adapters are switched off instead.
    assert full["gradients"] == full["weights"] == full["frozen reference copy"] == full["AdamW's two moments"] / 2
    assert lora["frozen reference copy"] == 0
    # rank 16 on 4 blocks of q, k, v, out (128 x 128) and three of 128 x 400, fp32
    assert lora["gradients"] == 4 * 16 * (4 * (128 + 128) + 3 * (128 + 400)) * 4
    assert lora["weights"] == full["weights"] + lora["gradients"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("method/*.yaml")), ids=lambda f: f.stem)
def test_every_method_can_be_planned(file, capsys):
    print_plan(settings_of(file.stem, "rollout.prompts_per_cycle=4"))
    printed = capsys.readouterr().out
    assert "4 prompts x 3 rollouts = 12 images a cycle" in printed
    assert "320 in 40 cycles; 480 images in all" in printed


def test_the_printed_plan_shows_k_plus_one(capsys):
    print_plan(settings_of("htgrpo"))
    run = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["run"])
    assert run.split()[2:6] == ["0", "1", str(K), str(K + 1)]


def large(model: str, method: str, *overrides: str) -> RunSettings:
    return load_settings([CONFIGS / f"model/{model}.yaml", CONFIGS / f"method/{method}.yaml"], overrides)


def test_the_8b_models_are_planned_without_a_checkpoint(capsys):
    """Numbers by hand, of width 4096, 32 layers, feed-forward 12,288, in bfloat16 with rank 128 on all of a block."""
    planned = plan(large("mmada", "htgrpo"), processes=8)
    blocks = 32 * (4 * 4096**2 + 3 * 4096 * 12288)
    adapters = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 12288))
    sizes = planned.sizes
    assert sizes.in_blocks == blocks and sizes.trained == adapters
    assert sizes.parameters == blocks + 2 * 134656 * 4096 + (2 * 32 + 1) * 4096
    assert sizes.sequence == 257 + 1 + 1024 + 1
    assert planned.memory["weights"] == 2 * sizes.parameters + 4 * adapters
    assert planned.memory["gradients"] == 4 * adapters == planned.memory["AdamW's two moments"] / 2
    assert planned.memory["frozen reference copy"] == 0
    # one prompt a micro-batch, so one row: inputs of 32 blocks, and one block whole, with float32 inputs of adapters
    block = 2 * (9 * 4096 + 4 * 12288) + 4 * (6 * 4096 + 12288)
    assert planned.memory["activations"] == 1283 * (32 * 4096 * 2 + block)
    assert planned.memory["logits"] == 2 * 1024 * 8192 * 2
    flops = 2 * (blocks + adapters) * 1283 + 4 * 1283**2 * 4096 * 32 + 2 * 1024 * 4096 * 8192
    assert sizes.row_flops() == pytest.approx(flops)
    assert sizes.new_cost() == 3  # forward, recomputed forward, gradient of inputs; adapters' own is small

    print_plan(large("mmada", "htgrpo"))
    printed = capsys.readouterr().out
    assert "8 x A100-80G" in printed and "1 x H200" in printed
    assert "checkpoints/mmada-8b-base is not there: LLaDA-8B's sizes" in printed


def test_sizes_come_from_the_checkpoint_where_there_is_one(lumina_folder, capsys):
    size = ["model.height=48", "model.width=80", "rollout.prompts_per_cycle=2", "rollout.rollouts_per_prompt=2"]
    settings = large("lumina", "htgrpo", f"model.checkpoint={lumina_folder}", *size)
    planned = plan(settings)
    assert planned.sizes.source is None
    assert planned.sizes.in_blocks == 2 * (4 * 32 * 32 + 3 * 32 * 48)
    assert planned.sizes.sequence == 256 + 3 * 6 + 4
    print_plan(settings)  # 2 prompts do not divide by 8 processes: one device only
    printed = capsys.readouterr().out
    assert "1 x H200" in printed and "8 x A100" not in printed


def test_the_cost_of_an_update_follows_checkpointing_and_adapters():
    assert plan(large("mmada", "htgrpo", "model.activation_checkpointing=false"), 8).sizes.new_cost() == 2
    full = plan(large("mmada", "htgrpo", "model.tuning=full"), 8)
    assert full.sizes.new_cost() == 4
    assert full.memory["weights"] == full.memory["gradients"] == full.memory["frozen reference copy"]


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="16 prompts a cycle do not divide into 3 processes"):
        plan(large("mmada", "htgrpo"), processes=3)


def test_a_broken_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint there"):
        plan(large("mmada", "htgrpo", f"model.checkpoint={tmp_path}"), processes=8)


def test_a_plan_of_a_large_model_says_what_it_is_at(capsys):
    print_plan(large("lumina", "htgrpo", "rollout.steps=2"))
    assert capsys.readouterr().err.splitlines() == [
        "lumina-htgrpo-s0: simulating a cycle on 8 x A100-80G",
        "lumina-htgrpo-s0: simulating a cycle on 1 x H200",
    ]


def test_a_plan_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for settings in (settings_of("htgrpo"), large("lumina", "htgrpo", "rollout.steps=2")):
        print_plan(settings)
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_evaluations_while_training_are_counted(capsys):
    """Before training, after cycles 15, 30 and 40; the first step is one row a prompt."""
    settings = settings_of("htgrpo", "eval.every=15", "eval.images_per_prompt=3", "loop.cycles=40")
    images, rows, positions, times = plan(settings).evaluation
    assert (images, rows, times) == (24 * 3, 24 * (1 + (T - 1) * 3), 4)
    assert 24 * 3 * 64 * 0.9 < positions <= 24 * 3 * 64  # each token once; a few of the first step are shared
    print_plan(settings)
    printed = capsys.readouterr().out
    assert "while training: 4 times 72 images of held-out prompts" in printed
    assert "288 images in all, 120.0% as many as are trained on" in printed  # of 40 x 6
    assert "MicroEval, before and after: 2 x 720 images" in printed
    assert plan(settings_of("htgrpo")).evaluation is None


def test_the_time_of_a_large_run_contains_its_evaluations():
    settings = large("mmada", "htgrpo", "rollout.steps=2")
    planned, device = plan(settings, 8), DEVICES[0]
    # 48 prompts, of each one row and then two, and as many without their prompt; over 8 devices
    images, rows, positions, times = planned.evaluation
    assert (images, rows, times) == (96, 48 * (1 + 2) * 2, 41)
    flops = planned.sizes.rollout_flops(rows, positions) / 8
    assert evaluation_seconds(planned, device) == pytest.approx(flops / (0.4 * 312e12))


def test_rollouts_are_planned_with_the_last_block_where_tokens_appear():
    """By hand, of 3 rows with 300 wanted positions; the sizes are those of the test of the 8B models."""
    sizes = plan(large("mmada", "htgrpo", "rollout.steps=2"), 8).sizes
    block, S = (sizes.in_blocks + sizes.trained) / 32, 1283
    matrices = 2 * (31 * block * 3 * S + 2 * 4096**2 * (3 * S - 300) + block * 300)
    attention = 4 * S * 4096 * (31 * 3 * S + 300)
    assert sizes.rollout_flops(3, 300) == pytest.approx(matrices + attention + 2 * 4096 * 8192 * 300)
    assert sizes.rollout_flops(3, 3 * 1024) == pytest.approx(3 * sizes.row_flops())  # more than half: all of it


def test_the_memory_of_rollouts_does_not_grow_with_the_images():
    few, many = (
        plan(large("mmada", "htgrpo", "rollout.steps=2", f"rollout.rollouts_per_prompt={G}")).memory[ROLLOUT]
        for G in (8, 24)
    )
    assert few == pytest.approx(many, rel=0.05)  # the largest step of a few more images is a little larger


@pytest.mark.parametrize("ties", ["raster", "shuffled"])
def test_tokens_of_one_step_count_as_structure_in_the_order_that_the_settings_name(ties):
    update = simulate(settings_of("htgrpo", "rollout.steps=1", f"method.ties={ties}"), wide_backbone(64)).updates[0]
    structure_BN = update.weight_BN == update.weight_BN.max()
    first_N = tie_places(64, ties) < 19  # 0.3 x 64 = 19.2; all tokens are of one step
    assert (structure_BN == first_N).all()
