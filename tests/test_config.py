"""YAML files and overrides: how they are merged, and the line that refuses each mistake."""

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.paths import CONFIGS, ROOT
from htgrpo_ext.config import load_settings, read_options, save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.settings import CHOICES
from htgrpo_ext.train.folder import refuse_other_settings

METHODS = CHOICES["method"]

MODEL = CONFIGS / "model/micro.yaml"
HTGRPO = CONFIGS / "method/htgrpo.yaml"


def errors(files, overrides=(), processes=1) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_settings(files, overrides, processes)
    return str(caught.value).splitlines()


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("method/*.yaml")), ids=lambda f: f.stem)
def test_every_method_file_loads_with_the_model(file):
    settings = load_settings([MODEL, file])
    assert settings.run_name == f"micro-{file.stem}-s0"
    assert set(yaml.safe_load(file.read_text())["method"]) == set(
        type(settings.method).model_fields
    )  # every field is written out


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("ablation/*.yaml")), ids=lambda f: f.stem)
def test_every_ablation_changes_htgrpo_and_names_its_run(file):
    settings, plain = load_settings([MODEL, HTGRPO, file]), load_settings([MODEL, HTGRPO])
    assert settings.run_name == f"micro-{file.stem}-s0"
    assert settings.method.name == "htgrpo" and settings.method != plain.method
    assert settings.model_copy(update={"label": None, "method": plain.method}) == plain
    assert "# Paper (GenEval overall, MMaDA):" in file.read_text()


def test_there_is_a_file_for_every_method():
    named = {yaml.safe_load(f.read_text())["method"]["name"] for f in CONFIGS.glob("method/*.yaml")}
    assert named == set(METHODS)


def test_later_files_win_and_mappings_merge_while_lists_are_replaced(tmp_path):
    first = written(
        tmp_path, "loop: {cycles: 5, save_steps: 3}\nreward: {terms: [{name: verdict, weight: 1}]}", "a.yaml"
    )
    second = written(tmp_path, "loop: {cycles: 6}", "b.yaml")
    settings = load_settings([MODEL, HTGRPO, first, second])
    assert (settings.loop.cycles, settings.loop.save_steps, settings.loop.micro_batches) == (6, 3, 2)
    assert [(r.name, r.weight) for r in settings.reward.terms] == [("verdict", 1.0)]


def test_overrides_come_after_the_files_and_are_yaml(tmp_path):
    overrides = [
        "loop.learning_rate=1e-4",
        "loop.adam_betas=[0.5, 9.5e-1]",
        "method.rates.global.mode=up",
        "log.tensorboard=false",
        "name=a=b",
        "loop.cycles=1",
        "loop.cycles=2",
    ]
    settings = load_settings([MODEL, HTGRPO], overrides)
    assert settings.loop.learning_rate == 0.0001 and settings.loop.adam_betas == (0.5, 0.95)
    assert settings.method.rates["global"].mode == "up" and settings.method.rates["global"].gamma_min == 0.5
    assert settings.method.rates["structure"].mode == "down"
    assert (settings.log.tensorboard, settings.name, settings.loop.cycles) == (False, "a=b", 2)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "1.0e-4", ".1e-3", "0.0001", "+1e-4"])
def test_a_number_may_be_written_in_any_way(tmp_path, text):
    file = written(tmp_path, f"loop: {{learning_rate: {text}}}")
    assert load_settings([MODEL, HTGRPO, file]).loop.learning_rate == 1e-4


def test_a_method_of_another_name_replaces_the_section():
    settings = load_settings([MODEL, HTGRPO, CONFIGS / "method/tracegrpo.yaml"], ["method.merged_steps=2"])
    assert settings.method == METHODS["tracegrpo"](name="tracegrpo", merged_steps=2)
    again = load_settings([MODEL, HTGRPO], ["method.name=d1", "method.prompt_mask_rate=0.2"])
    assert again.method == METHODS["d1"](name="d1", prompt_mask_rate=0.2)


@example(HTGRPO, "\x85 \u2028é", 1.0, (0.0, 0.0), None)  # ends of lines to YAML
@example(HTGRPO, "1e-4", 1e-5, (0.0, 0.0), Path("runs/a: b #c"))
@example(HTGRPO, "yes", 1e-5, (0.0, 0.0), Path("010"))
@given(
    st.sampled_from(sorted(CONFIGS.glob("method/*.yaml"))),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0")),
    st.floats(1e-9, 1),
    st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    st.sampled_from([None, Path("runs/a b"), Path("/somewhere/é")]),
)
def test_saved_settings_load_back_equal(tmp_path_factory, method, text, rate, betas, out):
    settings = load_settings([MODEL, method])
    loop = settings.loop.model_copy(update={"learning_rate": rate, "adam_betas": betas})
    term = settings.reward.terms[0].model_copy(update={"name": "clip", "device": text, "options": {"model": text}})
    reward = settings.reward.model_copy(update={"terms": [term]})
    settings = settings.model_copy(update={"loop": loop, "reward": reward, "out": out})
    path = tmp_path_factory.mktemp("saved") / "deep" / "config.yaml"
    save_settings(settings, path)
    assert load_settings([path]) == settings
    assert [f.name for f in path.parent.iterdir()] == ["config.yaml"]


def test_an_unknown_key_is_named_with_its_file_and_the_nearest_valid_key(tmp_path):
    file = written(tmp_path, "method: {structure_ration: 0.2}")
    assert errors([MODEL, HTGRPO, file]) == [
        f"{file}: unknown key `structure_ration` (did you mean `structure_ratio`?)"
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sede=1", "unknown key `sede` (did you mean `seed`?)"),
        ("loop.cycle=1", "unknown key `cycle` (did you mean `cycles`?)"),
        ("model.lora.rnk=1", "unknown key `rnk` (did you mean `rank`?)"),
        ("method.rates.global.gama_max=1", "unknown key `gama_max` (did you mean `gamma_max`?)"),
        ("method.rates.globl={}", "unknown key `globl` (did you mean `global`?)"),
        ("method.budget.structur=1", "unknown key `structur` (did you mean `structure`?)"),
        ("log.xyz=1", "unknown key `xyz` (one of tensorboard, wandb)"),
        ("method.structure_ratio=1.5", "method.structure_ratio must be less than 1 (got 1.5)"),
        ("method.structure_ratio=0", "method.structure_ratio must be greater than 0 (got 0)"),
        ("method.structure_weight=0", "method.structure_weight must be greater than 0 (got 0)"),
        ("method.refinement_weight=-0.5", "method.refinement_weight must be greater than 0 (got -0.5)"),
        (
            "method.rates.global.gamma_max=1.1",
            "method.rates.global.gamma_max must be less than or equal to 1 (got 1.1)",
        ),
        ("method.rates.global.gamma_min=0", "method.rates.global.gamma_min must be greater than 0 (got 0)"),
        ("method.rates.global.gamma_max=0.4", "method.rates.global: gamma_min 0.5 is above gamma_max 0.4"),
        ("method.context=all", "method.context must be 'masked' or 'reveal-structure' (got 'all')"),
        ("method.name=htgrp", "unknown method `htgrp` (did you mean `htgrpo`?)"),
        ("loop.cycles=many", "loop.cycles must be a valid integer (got 'many')"),
        ("loop.cycles=1.5", "loop.cycles must be a valid integer (got 1.5)"),
        ("loop=3", "loop must be a section of settings (got 3)"),
        ("method=htgrpo", "method must be a section of settings (got 'htgrpo')"),
        (
            "reward.terms=[{name: hpsv3, weight: 1}]",
            "reward.terms.0: reward `hpsv3` needs the url of a server "
            "(in process: aesthetic, clip, ocr, ocr-exact, partial, verdict)",
        ),
        (
            "reward.terms=[{name: clip, weight: 1, url: '127.0.0.1:80'}]",
            "reward.terms.0: url must begin with http:// or https:// (got '127.0.0.1:80')",
        ),
        (
            "reward.terms=[{name: verdict, weight: 1, protocol: reward-server-pickle}]",
            "reward.terms.0: protocol reward-server-pickle needs the url of a server",
        ),
        (
            "reward.terms=[{name: clip, weight: 1, url: 'http://h:80', options: {model: x}}]",
            "reward.terms.0: `options` and `device` apply only to in-process models, not to reward `clip`",
        ),
        (
            "reward.terms=[{name: verdict, weight: 1, device: cpu}]",
            "reward.terms.0: `options` and `device` apply only to in-process models, not to reward `verdict`",
        ),
        ("reward.terms=[{name: clip, weigth: 1, weight: 1}]", "unknown key `weigth` (did you mean `weight`?)"),
        ("reward.terms=[]", "reward.terms: no reward is given"),
        (
            "reward.terms=[{name: partial, weight: 1}, {name: partial, weight: 2}]",
            "reward.terms: reward `partial` is given twice",
        ),
        ("reward.mixing=max", "reward.mixing must be 'sum' or 'normalise-then-sum' (got 'max')"),
        ("prompts=[]", "prompts: no source of prompts is given"),
        ("prompts=[{format: text}]", "prompts.0: format text takes a path"),
        ("prompts=[{format: micro, path: x}]", "prompts.0: format micro takes no path"),
        ("rollout.rollouts_per_prompt=1", "rollout.rollouts_per_prompt must be greater than or equal to 2 (got 1)"),
    ],
)
def test_a_wrong_setting_is_one_line(override, line):
    assert errors([MODEL, HTGRPO], [override]) == [f"--set {override}: {line}"]


def test_an_unknown_method_lists_all_methods():
    assert errors([MODEL, HTGRPO], ["method.name=ppo"]) == [
        "--set method.name=ppo: unknown method `ppo` (one of d1, htgrpo, maskgrpo, maskgrpo-fixed, tracegrpo, unigrpo)"
    ]


def test_an_ablation_of_htgrpo_is_refused_with_another_method():
    file = CONFIGS / "ablation/a5-uniform-credit.yaml"
    found = errors([MODEL, CONFIGS / "method/maskgrpo.yaml", file])
    assert len(found) == 2 and all(line.startswith(f"{file}: unknown key `") for line in found)


def test_a_missing_setting_names_the_files(tmp_path):
    assert errors([MODEL]) == [f"{MODEL}: method is missing"]
    assert "method.name is missing" in errors([MODEL, written(tmp_path, "method: {structure_ratio: 0.3}")])[0]
    file = written(tmp_path, "model: {name: micro, tuning: full}")
    assert f"{file}: model.checkpoint is missing" in errors([file, HTGRPO])


@pytest.mark.parametrize(
    ("overrides", "processes", "line"),
    [
        (
            ["method.budget.refinement=1"],
            1,
            "budget 2+4+1 = 7, but updates_per_rollout is 8 (method.budget, loop.updates_per_rollout)",
        ),
        (
            ["rollout.prompts_per_cycle=12", "loop.micro_batches=3"],
            8,
            "12 prompts a cycle do not divide into 8 processes x 3 micro-batches "
            "(rollout.prompts_per_cycle, loop.micro_batches)",
        ),
        (
            ["model.tuning=lora", "model.lora=null"],
            1,
            "tuning is lora, but there are no LoRA settings (model.tuning, model.lora)",
        ),
        (
            ["rollout.guidance=1", "rollout.guidance_interval=[0.6, 0.62]"],
            1,
            "there is guidance, but none of the 8 steps has it (rollout.guidance_interval)",
        ),
        (
            ["sampling.guidance=1", "sampling.guidance_interval=[0.9, 0.1]"],
            1,
            "there is guidance, but none of the 8 steps has it (sampling.guidance_interval)",
        ),
        (
            ["rollout.sampler=maskgit", "rollout.reuse={refresh: 2}"],
            1,
            "reuse needs the sampler emerge: maskgit draws all masked tokens to choose some (rollout.reuse)",
        ),
        (
            ["loop.compile=default", "rollout.reuse={refresh: 2}"],
            1,
            "compiled blocks cannot keep keys and values; leave out rollout.reuse or loop.compile",
        ),
    ],
)
def test_a_problem_between_fields_is_one_line(overrides, processes, line):
    assert errors([MODEL, HTGRPO], overrides, processes) == [line]


@pytest.mark.parametrize("method", sorted(f.stem for f in (CONFIGS / "method").glob("*.yaml")))
@pytest.mark.parametrize("setting", ["guidance_interval=[0.3, 1]", "reuse={refresh: 2}"])
def test_only_methods_of_other_contexts_train_on_rollouts_that_are_not_exact(method, setting):
    files = [CONFIGS / "model/mmada.yaml", CONFIGS / f"method/{method}.yaml"]
    key, allowed = setting.partition("=")[0], method not in ("tracegrpo", "agrpo")
    line = f"{method} takes its ratio in the contexts that tokens were drawn in, so rollouts must be exact; "
    if allowed:
        assert getattr(load_settings(files, [f"rollout.{setting}"]).rollout, key) is not None
    else:
        assert errors(files, [f"rollout.{setting}"]) == [f"{line}leave out rollout.{key}"]


def test_a_model_that_keeps_nothing_refuses_reuse():
    assert errors([CONFIGS / "model/amused.yaml", HTGRPO], ["rollout.sampler=emerge", "rollout.reuse.refresh=2"]) == [
        "amused keeps no keys and values between steps (rollout.reuse)"
    ]


def test_an_interval_has_the_steps_that_begin_in_it():
    for interval, steps, guided in (
        ([0, 1], 3, [0, 1, 2]),
        ([0.7, 1], 10, [7, 8, 9]),
        ([0.25, 0.75], 4, [1, 2]),
        ([0.3, 1], 12, list(range(4, 12))),
        (None, 2, [0, 1]),
    ):
        sets = ["rollout.guidance=1", f"rollout.guidance_interval={interval or 'null'}", f"rollout.steps={steps}"]
        assert load_settings([MODEL, HTGRPO], sets).rollout.guided_steps == guided
    assert load_settings([MODEL, HTGRPO], ["rollout.guidance=0"]).rollout.guided_steps == []


def test_all_problems_are_reported_at_once():
    """Fields in the order of the settings, then what lies between fields."""
    overrides = ["method.structure_ration=1", "method.refinement_weight=0", "loop.cycles=0", "method.budget.global=3"]
    assert errors([MODEL, HTGRPO], [*overrides, "loop.micro_batches=5"]) == [
        "--set method.refinement_weight=0: method.refinement_weight must be greater than 0 (got 0)",
        "--set method.structure_ration=1: unknown key `structure_ration` (did you mean `structure_ratio`?)",
        "--set loop.cycles=0: loop.cycles must be greater than 0 (got 0)",
        "budget 3+4+2 = 9, but updates_per_rollout is 8 (method.budget, loop.updates_per_rollout)",
        "12 prompts a cycle do not divide into 1 processes x 5 micro-batches "
        "(rollout.prompts_per_cycle, loop.micro_batches)",
    ]


def test_one_wrong_field_is_reported_once():
    assert len(errors([MODEL, HTGRPO], ["method.budget.global=two"])) == 1
    assert len(errors([MODEL, HTGRPO], ["loop.updates_per_rollout=none"])) == 1
    assert len(errors([MODEL, HTGRPO], ["method=1", "loop=2"])) == 2


def test_files_that_cannot_be_read_are_one_line_each(tmp_path):
    missing, empty = tmp_path / "no.yaml", written(tmp_path, "# nothing\n", "empty.yaml")
    broken = written(tmp_path, "loop:\n  cycles: 3\n  a: b: c\n", "broken.yaml")
    twice = written(tmp_path, "seed: 1\nseed: 2\n", "twice.yaml")
    listed = written(tmp_path, "- a\n", "listed.yaml")
    assert errors([missing, empty, broken, twice, listed, tmp_path], ["seed", "seed=[1"]) == [
        f"{missing}: no such file",
        f"{empty}: empty, expected settings",
        f"{broken}:3: not valid YAML (mapping values are not allowed here)",
        f"{twice}:2: `seed` is given twice",
        f"{listed}: expected sections such as `method:`, got a list",
        f"{tmp_path}: cannot be read (Is a directory)",
        "--set seed: expected key=value, such as loop.cycles=2",
        "--set seed=[1: not valid YAML (expected ',' or ']', but got '<stream end>')",
    ]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("reward/*.yaml")), ids=lambda f: f.stem)
@pytest.mark.parametrize("model", ["micro", "words", "lumina"])
def test_every_reward_file_loads_with_every_model(model, file):
    settings = load_settings([CONFIGS / "model" / f"{model}.yaml", file, HTGRPO])
    assert [t.name for t in settings.reward.terms] == [
        t["name"] for t in yaml.safe_load(file.read_text())["reward"]["terms"]
    ]


@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_real_models_have_the_papers_reward(model):
    files = [CONFIGS / "model" / f"{model}.yaml", HTGRPO]
    assert load_settings(files).reward == load_settings([*files, CONFIGS / "reward/paper.yaml"]).reward


def test_the_two_difficulties_of_the_words_world_differ_in_name_and_checkpoint_only():
    fixed, free = (load_settings([CONFIGS / "model" / f"{name}.yaml", HTGRPO]) for name in ("words", "words-free"))
    assert (fixed.run_name, free.run_name) == ("words-htgrpo-s0", "words-free-htgrpo-s0")
    assert fixed.model.checkpoint != free.model.checkpoint
    same = {"name": "words", "checkpoint": fixed.model.checkpoint}
    assert free.model.model_dump() | same == fixed.model.model_dump()
    assert free.model_dump(exclude={"model"}) == fixed.model_dump(exclude={"model"})


def test_the_micro_verifier_is_refused_for_other_models():
    lumina = CONFIGS / "model/lumina.yaml"
    found = errors([lumina, HTGRPO], ["reward.terms=[{name: partial, weight: 1}]"])
    assert found == ["reward `partial` reads codes of the micro world, not images of lumina (reward.terms)"]
    both = errors([lumina, HTGRPO], ["reward={terms: [{name: partial, weight: 1}]}", "loop.cycles=0"])
    assert len(both) == 2 and both[1] == found[0]


def test_a_run_resumes_with_moved_rewards_but_not_with_other_rewards():
    def with_terms(*terms: str):
        return load_settings([MODEL, HTGRPO], [f"reward.terms=[{', '.join(terms)}]", "out=run"])

    clip, partial = "{name: clip, weight: 1%s}", "{name: partial, weight: 1%s}"
    then = with_terms(clip % ", device: cpu", partial % "")
    moved = with_terms(clip % ", device: 'cuda:1', batch_size: 4", partial % ", url: 'http://h:1', timeout: 5")
    refuse_other_settings(moved, then)
    for other in (clip % ", options: {model: ViT-H-14}", clip % ", scale: 2"):
        with pytest.raises(UserError, match=r"^run: the run there has reward.terms"):
            refuse_other_settings(with_terms(other, partial % ""), then)


@pytest.mark.parametrize(
    "value",
    ["010", "1:30", "1_000", "0x10", "0o17", "+010", ".inf", "-.inf", ".nan", "yes", "off"],
)
def test_an_ambiguous_value_is_refused(tmp_path, value):
    reason = f"`{value}` is ambiguous: write a plain number, true or false, or text in quotes"
    assert errors([MODEL, HTGRPO], [f"loop.cycles={value}"]) == [f"--set loop.cycles={value}: {reason}"]
    file = written(tmp_path, f"loop:\n  cycles: {value}\n")
    assert errors([MODEL, HTGRPO, file]) == [f"{file}:2: {reason}"]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("loop.cycles=true", "loop.cycles must be a valid integer (got true)"),
        ("loop.cycles='3'", "loop.cycles must be a valid integer (got '3')"),
        ("loop.cycles=2024-01-01", "loop.cycles must be a valid integer (got '2024-01-01')"),
        ("loop.cycles=null", "loop.cycles must be a valid integer (got nothing)"),
        ("loop.learning_rate=false", "loop.learning_rate must be a valid number (got false)"),
        ("loop.adam_betas=[0, true]", "loop.adam_betas.1 must be a valid number (got true)"),
        ("loop.adam_betas=[0]", "loop.adam_betas.1 is missing"),
        ("log.wandb=1", "log.wandb must be true or false (got 1)"),
        ("method.budget={global: true}", "method.budget.global must be a valid integer (got true)"),
        ("loop.learning_rate=nan", "loop.learning_rate must be a valid number (got 'nan')"),
        ("loop.learning_rate=1e400", "`1e400` is beyond the range of a number"),
        ("rollout.temperature=1e-400", "`1e-400` is beyond the range of a number"),
        (f"seed={'9' * 5000}", f"`{'9' * 30}..` is beyond the range of a number"),
        ("reward.terms=[{name: verdict, weight: .inf}]", "`.inf` is ambiguous: write a plain number, true or false, "
         "or text in quotes"),
        ("reward.terms=[{name: clip, weight: 1, options: {model: [a]}}]",
         "reward.terms.0.options.model must be text, a number, true or false (got a list)"),
        ("method={[a]: 1}", "a key must be text"),
        ('x="\\ud800"', "a null character or half of a surrogate pair is no text"),
        ("method={{a: 1}: 1}", "a key must be text"),
        ("method=&a {b: *a}", "more than 32 levels, or an alias that contains itself"),
        ("method=&a [*a]", "more than 32 levels, or an alias that contains itself"),
        (f"method={'[' * 3000}", "more than 32 levels"),
        (f"method={'{a: ' * 3000}", "more than 32 levels"),
        ("method={name: !!python/name:os.system x}", "tag `tag:yaml.org,2002:python/name:os.system` is not read"),
        ("method=!!set {a}", "tag `tag:yaml.org,2002:set` is not read"),
        ("label=../../evil", "label: must be a folder's name: no / or \\, no dot in front, at most 100 bytes"),
        ('model={name: micro, checkpoint: "a\\0b"}', "a null character or half of a surrogate pair is no text"),
    ],
)  # fmt: skip
def test_a_strange_value_is_one_line(override, reason):
    (line,) = errors([MODEL, HTGRPO], [override])
    assert line.startswith(f"--set {override[:100]}") and line.endswith(f": {reason}")


def test_aliases_that_stand_for_billions_are_refused(tmp_path):
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    file = written(tmp_path, "\n".join(lines))
    assert errors([file]) == [f"{file}:1: more than 100,000 values"]


def test_an_alias_is_its_value(tmp_path):
    file = written(tmp_path, "method: {rates: {global: &r {gamma_min: 0.25}, structure: *r}}")
    rates = load_settings([MODEL, HTGRPO, file]).method.rates
    assert rates["global"].gamma_min == rates["structure"].gamma_min == 0.25


@pytest.mark.parametrize("name", ["[a]", "{a: b}"])
def test_a_name_that_is_no_text_is_an_unknown_name(tmp_path, name):
    file = written(tmp_path, f"method: {{name: {name}}}")
    (line,) = errors([MODEL, file])
    assert line.startswith(f"{file}: unknown method `a ") and line.endswith("tracegrpo, unigrpo)")


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", ".hidden", "..", " ", "a\tb", "n" * 101])
def test_a_name_that_would_leave_its_folder_is_refused(name):
    (line,) = errors([MODEL, HTGRPO], [f"name={name}"])
    assert line.endswith("name: must be a folder's name: no / or \\, no dot in front, at most 100 bytes")


@pytest.mark.parametrize(
    "text", ["123", "010", "1e3", "true", "yes", "a: b", "a #b", "[x", "*x", "2024-13-01", "a=b", "!x"]
)
def test_an_override_of_a_text_or_a_path_is_taken_as_it_stands(text):
    settings = load_settings([MODEL, HTGRPO], [f"name={text}", f"model.checkpoint={text}", f"out=/{text}"])
    assert (settings.name, settings.model.checkpoint, settings.out) == (text, Path(text), Path("/", text))


def test_a_file_may_give_a_number_for_a_text_or_a_path(tmp_path):
    file = written(tmp_path, "name: 010\nlabel: 1e3\nout: /123\nmodel: {checkpoint: /1e3}")
    settings = load_settings([MODEL, HTGRPO, file])
    assert (settings.name, settings.label) == ("010", "1e3")
    assert (settings.out, settings.model.checkpoint) == (Path("/123"), Path("/1e3"))


@pytest.mark.parametrize("value", ["null", ""])
def test_an_optional_text_or_path_may_be_null(value):
    settings = load_settings([MODEL, HTGRPO], ["name=a", "out=b", f"name={value}", f"out={value}"])
    assert settings.name is None and settings.out is None


def test_paths_in_a_file_are_relative_to_it_and_overrides_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine/data").mkdir(parents=True)
    source = "prompts: [{format: text, path: data/p.txt}]\nmodel: {checkpoint: ../base}\nout: ~/run"
    file = written(tmp_path / "mine", source)
    monkeypatch.setenv("HOME", "/home/someone")
    for here in (tmp_path, tmp_path / "mine", Path("/")):
        monkeypatch.chdir(here)
        settings = load_settings([MODEL, HTGRPO, file], ["prompts=[]", "prompts=[{format: text, path: data/p.txt}]"])
        assert settings.model.checkpoint.resolve() == tmp_path / "base"
        assert settings.out.resolve() == Path("/home/someone/run")
        assert settings.prompts[0].path == Path("data/p.txt")
        assert load_settings([MODEL, HTGRPO, file]).prompts[0].path.resolve() == tmp_path / "mine/data/p.txt"


def test_saved_paths_move_with_their_tree_and_stay_absolute_out_of_it(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    sets = ["model.checkpoint=base", "prompts=[{format: text, path: /data/p.txt}]"]
    save_settings(load_settings([MODEL, HTGRPO], sets), Path("runs/x/config.yaml"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    settings = load_settings([Path("b/runs/x/config.yaml")])
    assert (settings.model.checkpoint, settings.prompts[0].path) == (Path("b/base"), Path("/data/p.txt"))


@pytest.mark.parametrize("files", [["model/micro", "method/d1"], ["configs/model/micro.yaml", "method/d1.yaml"]])
def test_packaged_files_are_found_from_any_folder(tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    settings = load_settings([Path(file) for file in files])
    assert settings.run_name == "micro-d1-s0" and settings.model.checkpoint == ROOT / "assets/micro-base"


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        ("loop.cycles=1000000000", "1000000"),
        ("loop.updates_per_rollout=1000000", "256"),
        ("loop.micro_batches=1000000", "65536"),
        ("loop.learning_rate=2", "1"),
        ("loop.warmup_updates=1000000000000", "256000000"),
        ("loop.save_steps=1000000000", "1000000"),
        ("loop.max_grad_norm=1e30", "1000000000"),
        ("rollout.steps=1000000000", "4096"),
        ("rollout.rollouts_per_prompt=1000000000", "65536"),
        ("rollout.prompts_per_cycle=1000000000", "65536"),
        ("rollout.guidance=1e39", "1000000000"),
    ],
)
def test_every_count_has_a_bound(override, bound):
    key, value = override.split("=")
    (line,) = errors([MODEL, HTGRPO], [override])[:1]
    assert line.startswith(f"--set {override}: {key} must be less than or equal to {bound} (got ")


@pytest.mark.parametrize("value", ["1000000000", "0", "true", "many", "1.5"])
def test_a_batch_size_is_a_number_or_auto(value):
    (line,) = errors([MODEL, HTGRPO], [f"loop.batch_size={value}"])
    assert line.endswith("loop.batch_size: must be auto, or a whole number from 1 to 65536")
    assert load_settings([MODEL, HTGRPO], ["loop.batch_size=auto"]).loop.batch_size == "auto"


def test_more_rollouts_than_a_cycle_can_hold_are_refused():
    assert errors([MODEL, HTGRPO], ["rollout.rollouts_per_prompt=6000"]) == [
        "72,000 images of 64 tokens a cycle are too many: a cycle has at most 4,194,304 tokens "
        "(rollout.prompts_per_cycle, rollout.rollouts_per_prompt)"
    ]


def test_a_file_that_is_no_settings_is_one_line(tmp_path):
    large, latin = tmp_path / "large.yaml", tmp_path / "latin.yaml"
    large.write_text("# " + "x" * 2**20)
    latin.write_bytes("name: é".encode("latin-1"))
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbfloop: {cycles: 7}")
    assert errors([large, latin, Path("a\nb.yaml")]) == [
        f"{large}: no file of settings (larger than a MiB)",
        f"{latin}: cannot be read (not UTF-8 text)",
        "a\\nb.yaml: no such file",
    ]
    assert load_settings([MODEL, HTGRPO, marked]).loop.cycles == 7


def test_options_are_numbers_truth_values_or_text():
    given = ["a=1", "b=1e-3", "c=true", "d=x: y #z", "e=[1]", "f=", "a=2"]
    assert read_options(given) == {"a": 2, "b": 0.001, "c": True, "d": "x: y #z", "e": "[1]", "f": ""}
    for wrong in ("a", "=1", "a=010", "a=.inf"):
        with pytest.raises(UserError):
            read_options([wrong])


def test_an_unknown_benchmark_is_named():
    assert errors([MODEL, HTGRPO], ["eval={name: microevil}"]) == [
        "--set eval={name: microevil}: unknown eval `microevil` (did you mean `microeval`?)"
    ]


def test_a_benchmark_of_another_models_codes_is_refused():
    section = "eval={name: microeval, prompts_per_task: 1, images_per_prompt: 1, seed: 0}"
    assert errors([CONFIGS / "model/mmada.yaml", HTGRPO], [section]) == [
        "MicroEval reads codes of the micro world, not images of mmada (eval)"
    ]


@pytest.mark.parametrize("held_out, override", [(3, "eval.prompts_per_task=3"), (40, "eval=null")])
def test_rl_leaves_out_the_prompts_of_the_evaluation(held_out, override):
    assert load_settings([MODEL, HTGRPO], [override]).held_out == held_out


HELD_OUT = "eval={name: held-out, num_prompts: 4, images_per_prompt: 1, seed: 0, exclude: none.jsonl"


def test_held_out_prompts_need_to_be_told_how_often():
    assert errors([MODEL, HTGRPO], [HELD_OUT + "}"]) == [f"{MODEL}: eval.every is missing"]
    settings = load_settings([MODEL, HTGRPO], [HELD_OUT + ", every: 3}"])
    assert settings.eval.every == 3 and settings.benchmark is None and settings.eval.exclude == Path("none.jsonl")


@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_real_models_are_evaluated_while_they_train(model):
    settings = load_settings([CONFIGS / f"model/{model}.yaml", HTGRPO])
    evaluation, rollout = settings.eval, settings.rollout
    assert evaluation.exclude == Path(CONFIGS, "../upstream/dataset/GenEval/evaluation_metadata.jsonl").resolve() or (
        str(evaluation.exclude) == "upstream/dataset/GenEval/evaluation_metadata.jsonl"
    )
    images = evaluation.num_held_out * evaluation.images_per_prompt
    between = evaluation.every * rollout.prompts_per_cycle * rollout.rollouts_per_prompt
    assert images / between == 0.03  # as the file's comment says
