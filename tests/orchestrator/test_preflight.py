import json
import shutil
import sys

import pytest

from learner.config import ClippedSurrogate, LossParams, Term
from orchestrator.load_config import load_run_config
from orchestrator.preflight import (
    PreflightError,
    answer_problems,
    companion_problems,
    evaluation_problems,
    expert_problems,
    help_problems,
    preflight,
    prompt_problems,
    source_problems,
    unread_problems,
)
from orchestrator.preflight_machine import core_problems, engine_problems, placement_problems, resource_problems
from orchestrator.resources import Available
from rewards.task import ExpertResponse, Task, TaskSet
from tests.orchestrator.small_model import POSITIONS, save_small_model

TWO_CORES = Available(where="this machine", cpus=2, gpus=0, starts_with_run=True)
CLUSTER = Available(where="the cluster", cpus=16, gpus=4, gpus_per_node=(2, 2))


def config(*settings, recipe="grpo"):
    return load_run_config(recipe, settings)


def tasks(*train, heldout=()):
    return TaskSet(train=train, heldout=tuple(heldout))


def task(task_id="t", reference="3", **fields):
    return Task(**({"task_id": task_id, "prompt": "1 + 2", "reference": reference} | fields))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes modules of a user's own package that is importable for one test."""

    def write(**modules):
        folder = tmp_path / "own_pkg"
        folder.mkdir(exist_ok=True)
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_pkg"]:
        del sys.modules[name]


OWN_PARTS = {
    "tasks": "from rewards.task import Task\n"
    "def load():\n    return [Task(task_id=str(i), prompt=str(i), reference=str(i)) for i in range(30)]\n",
    "rewards": "def score(answer, task):\n    return float(answer == task.reference)\n",
}
OWN_SETTINGS = (
    "tasks.source=own_pkg.tasks:load",
    "tasks.options={}",
    "tasks.num_train=20",
    "tasks.num_heldout=8",
    "reward.components={own: {verifier: 'own_pkg.rewards:score'}}",
    "evaluation.split_by=null",
)


# -- as a whole ---------------------------------------------------------------------------------------------------


def test_a_run_with_a_users_own_parts_is_cleared(own, model):
    own(**OWN_PARTS)
    cleared = preflight(config(*OWN_SETTINGS, f"model={model}"), TWO_CORES)
    assert (len(cleared.tasks.train), len(cleared.tasks.heldout)) == (20, 8)
    assert cleared.model_path == model


def test_all_reasons_are_told_together(own, model):
    own(rewards=OWN_PARTS["rewards"])
    settings = ("rollout.rules=[drop_constnt]", "rollout.engine.max_model_len=1024")
    with pytest.raises(PreflightError) as raised:
        preflight(config(*OWN_SETTINGS, f"model={model}", *settings))
    rules, source, context = raised.value.problems
    assert "unknown rule 'drop_constnt': did you mean 'drop_constant'" in rules
    assert "no module 'own_pkg.tasks' on sys.path" in source
    assert f"has {POSITIONS} positions: lower it to at most {POSITIONS}" in context


def test_an_evaluation_needs_no_batches(own, model):
    own(**OWN_PARTS)
    bad_for_training = ("replay.quotas.expert=1/2", "terms.1={loss: negative_log_likelihood, source: expert}")
    run_config = config(*OWN_SETTINGS, f"model={model}", *bad_for_training)
    assert preflight(run_config, trains=False).tasks.heldout
    with pytest.raises(PreflightError, match="none of the 20 training tasks has an expert response"):
        preflight(run_config)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"tasks": "import no_such_library\n"}, "'own_pkg.tasks' was found, but it imports 'no_such_library'"),
        ({"tasks": "def load():\n    return {}['x']\n"}, r"tasks: source 'own_pkg.tasks:load' raised KeyError: 'x'"),
        ({"tasks": "def load():\n    return [1]\n"}, "must return a TaskSet or an iterable of Task"),
        ({"tasks": "def lod():\n    return []\n"}, "has no attribute 'load'.*did you mean 'lod'"),
        ({"rewards": "def (\n"}, "module 'own_pkg.rewards' failed while it was imported: SyntaxError"),
        ({"rewards": "def score(answer):\n    return 1.0\n"}, "cannot be called as .answer, task"),
    ],
)
def test_a_users_own_faults_are_named(own, model, parts, told):
    own(**(OWN_PARTS | parts))
    with pytest.raises(PreflightError, match=told) as raised:
        preflight(config(*OWN_SETTINGS, f"model={model}"))
    assert len(raised.value.problems) == 1


def test_a_package_that_hides_behind_braids_own_is_pointed_out(own, tmp_path, monkeypatch, model):
    own(**OWN_PARTS)
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.py").write_text(OWN_PARTS["rewards"])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    settings = (*OWN_SETTINGS, f"model={model}", "reward.components={own: {verifier: 'rewards.mine:score'}}")
    with pytest.raises(PreflightError, match=r"Braid's own package is called 'rewards' and hides .*: rename yours"):
        preflight(config(*settings))


def test_an_unknown_model_is_told(own, tmp_path):
    own(**OWN_PARTS)
    with pytest.raises(PreflightError, match=r"^model: .* has no config.json, so it is not a model folder"):
        preflight(config(*OWN_SETTINGS, f"model={tmp_path}"))


# -- where it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["rollout.num_gpus_per_worker=1"], "placement='cpu' but rollout.num_gpus_per_worker=1"),
        (["placement=split"], "num_gpus_per_worker=0, so no engine would see a GPU: set it to 1"),
        (["placement=colocated"], "num_gpus_per_worker=0, so no engine would see a GPU: set it to 0.5"),
        (
            ["placement=split", "rollout.num_gpus_per_worker=1", "rollout.engine.tensor_parallel_size=2"],
            "an engine needs as many whole GPUs as it is spread over",
        ),
        (["placement=colocated", "rollout.num_gpus_per_worker=1"], "leave nothing of the 1 GPUs of the learner"),
        (["placement=split", "rollout.num_gpus_per_worker=1", "layout=halves"], "set layout=null"),
        (["rollout.engine.cores='0'", "rollout.num_workers=2"], "all workers would share these cores"),
    ],
)
def test_contradictions_of_placement(settings, told):
    (problem,) = placement_problems(config(*settings))
    assert told in problem


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["placement=split", "rollout.num_gpus_per_worker=1"],
        ["placement=split", "rollout.num_gpus_per_worker=2", "rollout.engine.tensor_parallel_size=2"],
        ["placement=colocated", "rollout.num_gpus_per_worker=0.5"],
        ["placement=split", "rollout.engine.kind=simulated"],
        ["layout=halves"],
    ],
)
def test_placements_that_fit(settings):
    assert not list(placement_problems(config(*settings)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["placement=split", "rollout.num_gpus_per_worker=1", "rollout.num_workers=4"], "asks for 5 GPUs"),
        (
            ["placement=split", "rollout.num_gpus_per_worker=3", "rollout.engine.tensor_parallel_size=3"],
            "a rollout worker asks for 3 GPUs on one node, but the largest node of the cluster has 2",
        ),
        (["rollout.num_workers=20"], "asks for 21 CPUs, but the cluster has 16"),
    ],
)
def test_more_than_the_cluster_has(settings, told):
    (problem,) = resource_problems(config(*settings), CLUSTER)
    assert told in problem


def test_a_cluster_that_starts_with_the_run_has_as_many_logical_cpus_as_wanted():
    assert not list(resource_problems(config("rollout.num_workers=20"), TWO_CORES))
    (problem,) = resource_problems(config("placement=split", "rollout.num_gpus_per_worker=1"), TWO_CORES)
    assert (
        "asks for 2 GPUs (1 x 1 for each rollout worker, 1 x 1 for each learner rank), but this machine has 0"
        in problem
    )


@pytest.mark.parametrize(
    ("cores", "told"),
    [("0-5", "names core 5, but this machine has 2"), ("x", "core list 'x'"), ("0|1-3", "names core 3"), ("0,1", None)],
)
def test_core_lists(cores, told):
    problems = list(core_problems(config(f"rollout.engine.cores='{cores}'"), 2))
    assert not problems if told is None else (len(problems) == 1 and told in problems[0])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["rollout.engine.options.logprobs_mode=raw_logprobs"], "logprobs_mode='raw_logprobs' cannot be set"),
        (["rollout.engine.options.generation_config=auto"], "would truncate the distribution"),
        (["learner.lora.rank=8"], "set rollout.engine.options={enable_lora: true, max_lora_rank: 8}"),
        (["learner.lora.rank=32", "rollout.engine.options={enable_lora: true}"], "max_lora_rank: 32"),
        (["rollout.engine.kind=simulated", "rollout.engine.options.speed=3"], "rollout.engine.options of a simulated"),
    ],
)
def test_engine_options(settings, told):
    (problem,) = engine_problems(config(*settings))
    assert told in problem


def test_engine_options_that_fit():
    settings = ["learner.lora.rank=32", "rollout.engine.options={enable_lora: true, max_lora_rank: 32}"]
    assert not list(engine_problems(config(*settings)))
    assert not list(engine_problems(config("learner.lora.rank=8", "rollout.engine.kind=transformers")))


def test_vllm_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("orchestrator.preflight_machine.find_spec", lambda name: None)
    (problem,) = engine_problems(config())
    assert "vllm is not installed" in problem
    assert not list(engine_problems(config("rollout.engine.kind=transformers")))


# -- what it learns from ------------------------------------------------------------------------------------------


def test_sources_without_a_supplier():
    settings = ("replay.quotas.teacher=1/4", "terms.1={loss: negative_log_likelihood, source: teacher}")
    (problem,) = source_problems(config(*settings))
    assert "nothing in this run supplies source 'teacher'" in problem


def test_expert_text_has_no_behaviour_logprobs():
    settings = ("replay.quotas.expert=1/4", "terms.1={loss: clipped_surrogate, source: expert}")
    (problem,) = source_problems(config(*settings))
    assert "terms[1] (clipped_surrogate on 'expert') needs behavior_logprobs, which" in problem


def test_needs_that_no_box_supplies():
    class NeedsProximal(LossParams):
        name: str = "needs_proximal"
        needs = frozenset({"proximal_logprobs"})

    term = Term(loss=ClippedSurrogate()).model_copy(update={"loss": NeedsProximal()})
    (problem,) = source_problems(config().model_copy(update={"terms": (term,)}))
    assert "needs proximal_logprobs, which nothing in this run supplies" in problem


@pytest.mark.parametrize("recipe", ["chord_mu", "sft", "dapo", "sft_then_rl"])
def test_what_the_recipes_need_is_supplied(recipe):
    assert not list(source_problems(config(recipe=recipe)))


def test_a_term_says_which_settings_it_is_missing():
    (told,) = source_problems(config("learner.teacher=null", recipe="gkd"))
    assert "terms[0] (teacher_divergence on 'live') needs divergence: set learner.teacher" in told


def test_models_that_nobody_reads():
    settings = ("learner.critic={}", "learner.teacher.model=any", "learner.reference.model=any")
    told = list(unread_problems(config(*settings)))
    assert [problem.split(" is set")[0] for problem in told] == [
        "learner.critic",
        "learner.teacher",
        "learner.reference.model",
    ]
    for recipe in ("ppo", "opd", "gkd", "prorl"):
        assert not list(unread_problems(config(recipe=recipe)))


def test_a_teacher_must_read_the_same_tokens(model, tmp_path):
    own = config(f"model={model}", f"learner.teacher.model={model}", recipe="opd")
    assert not list(companion_problems(own, model))
    other = shutil.copytree(model, tmp_path / "other")
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    first, second = list(vocabulary["model"]["vocab"])[-2:]
    ids = vocabulary["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    (told,) = companion_problems(config(f"model={model}", f"learner.teacher.model={other}", recipe="opd"), model)
    assert "another tokenizer" in told
    (told,) = companion_problems(config(f"learner.teacher.model={tmp_path / 'none'}", recipe="opd"), model)
    assert told.startswith("learner.teacher.model")


def test_tasks_without_answers():
    (problem,) = answer_problems(config(), tasks(task("a", None), task("b", "no number"), task("c")))
    assert "verifier 'final_number' cannot judge answers to 2 of 3 tasks looked at, e.g. 'a'" in problem


def test_a_few_useless_references_are_masked_while_the_run_goes_on():
    assert not list(answer_problems(config(), tasks(task("a", None), *(task(str(i)) for i in range(9)))))


def test_verifiers_that_need_no_reference_and_those_of_users_are_left_alone():
    unanswered = tasks(task("a", None))
    settings = "reward.components={form: {verifier: format_tags}, own: {verifier: 'own_pkg:score'}}"
    assert not list(answer_problems(config(settings), unanswered))
    optional = config(
        "reward.components={right: {verifier: final_number, required: false}, form: {verifier: format_tags}}"
    )
    assert not list(answer_problems(optional, unanswered))


def test_help_and_donors_that_no_task_has():
    expert = tasks(task(expert=(ExpertResponse(text="3"),)))
    for name, word in (("prefixrl", "kind='prefix'"), ("luffy", "splice expert answers")):
        (problem,) = help_problems(load_run_config(name), tasks(task()))
        assert word in problem
        assert not list(help_problems(load_run_config(name), expert))
    assert not list(help_problems(load_run_config("agent_rlvr"), tasks(task())))


def test_an_expert_quota_that_the_tasks_cannot_fill():
    run_config = config(recipe="chord_mu")
    (problem,) = expert_problems(run_config, tasks(task()))
    assert "none of the 1 training tasks has an expert response" in problem
    assert not list(expert_problems(run_config, tasks(task(expert=(ExpertResponse(text="3"),)))))
    (problem,) = expert_problems(
        config("replay.max_uses.expert=2", "num_steps=3", "replay.groups_per_update=4", recipe="sft"),
        tasks(task(expert=(ExpertResponse(text="3"),))),
    )
    assert "1 expert groups x replay.max_uses.expert=2 are fewer than the 12 that 3 steps take" in problem


def test_recorded_pairs_are_compared_and_not_imitated():
    pair = tasks(task(expert=(ExpertResponse(text="3"), ExpertResponse(text="4", score=0.0))))
    single = tasks(task(expert=(ExpertResponse(text="3"),)))
    (problem,) = expert_problems(config(recipe="chord_mu"), pair)
    assert "would imitate the rejected answers too that 1 training tasks hold" in problem
    (problem,) = expert_problems(config(recipe="dpo_recorded"), single)
    assert "compares expert answers, but all of them count 1" in problem
    assert not list(expert_problems(config(recipe="dpo_recorded"), pair))
    assert not list(source_problems(config(recipe="dpo_recorded")))


def test_evaluations_of_nothing():
    (problem,) = evaluation_problems(config("evaluation.every=5"), tasks(task()))
    assert "there are no held-out tasks" in problem
    heldout = [task("h", tags={"level": "1"})]
    (problem,) = evaluation_problems(config("evaluation.split_by=lvl"), tasks(task(), heldout=heldout))
    assert "evaluation.split_by='lvl' is a tag of no held-out task: known tags are level" in problem
    assert not list(evaluation_problems(config("evaluation.split_by=level"), tasks(task(), heldout=heldout)))


# -- what fits ----------------------------------------------------------------------------------------------------


def test_prompts_are_counted_to_the_token(model):
    """<user>, the letters, <end>, <assistant>: three tokens beside the prompt's own."""
    run_config = config("rollout.engine.max_model_len=100", "rollout.sampling.max_new_tokens=40")
    fits, too_long = task("fits", prompt="x" * 57), task("long", prompt="x" * 58)
    assert not list(prompt_problems(run_config, model, [fits]))
    (problem,) = prompt_problems(run_config, model, [fits, too_long, task("short")])
    assert "1 prompts leave no room for an answer: the longest, of task 'long', has 61 tokens" in problem
    assert "Raise max_model_len to at least 101" in problem


def test_a_system_prompt_counts(model):
    settings = (
        "rollout.engine.max_model_len=64",
        "rollout.sampling.max_new_tokens=40",
        "tasks.system_prompt=answer briefly",
    )
    (problem,) = prompt_problems(config(*settings), model, [task(prompt="x" * 20)])
    assert "has 39 tokens" in problem


def test_a_tokenizer_without_a_chat_template(model, tmp_path):
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (problem,) = prompt_problems(config(), tmp_path, [task()])
    assert "no chat template" in problem
