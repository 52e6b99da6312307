"""Everything that can be refused before anything of a run starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from actors.contexts.policy import as_context
from actors.contexts.render import source_text
from actors.renderer import Renderer, RenderError
from actors.replay.config import TableConfig
from actors.rules.config import donor_sources
from orchestrator.config import RunConfig
from orchestrator.preflight_machine import engine_problems, placement_problems, resource_problems
from orchestrator.resources import Available
from rewards.task import Task, TaskSet
from rewards.verdict import Status

OWN_PACKAGES = ("rewards", "learner", "actors", "orchestrator", "recipes")

SUPPLIED_SOURCES = ("live", "expert")
"""Sources every run can fill: by rollout workers, and with the expert responses that come with the tasks."""

SECTION_OF_NEED = {"teacher_logprobs": "learner.teacher", "divergence": "learner.teacher", "values": "learner.critic"}
"""Settings that supply what a term reads."""

SUPPLIED_BY_LIVE = frozenset({"behavior_logprobs", "scores"})
"""What only sampled and judged answers carry; expert text has neither."""

MAX_JUDGED_TASKS = 256
"""Tasks whose references are tried out on the built-in verifiers."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Cleared:
    """What the checks had to load; nothing of it need be loaded again in this process."""

    model_path: Path
    tasks: TaskSet


class PreflightError(ValueError):
    """The run would fail. `problems` has one line per reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def preflight(config: RunConfig, available: Available | None = None, *, trains: bool = True) -> Cleared:
    """Loads tasks, reward and tokenizer as the run would, and refuses what cannot work.

    Args:
        available: resources the run may use; None leaves them unchecked.
        trains: False for an evaluation alone, which takes no batches and has no learner.

    Raises:
        PreflightError: with all reasons found.
    """
    problems = [
        *placement_problems(config),
        *(resource_problems(config, available) if available is not None else ()),
        *engine_problems(config),
        *reward_problems(config),
    ]
    if trains:
        problems += [*source_problems(config), *unread_problems(config), *rule_problems(config)]
    tasks = _attempt(lambda: _load_tasks(config), problems)
    model_path = _attempt(lambda: _resolve_model(config), problems)
    if tasks is not None:
        problems += answer_problems(config, tasks)
        problems += evaluation_problems(config, tasks)
        if trains:
            problems += expert_problems(config, tasks)
            problems += help_problems(config, tasks)
    if model_path is not None and trains:
        problems += companion_problems(config, model_path)
    if model_path is not None:
        problems += context_problems(config, model_path)
        if tasks is not None:
            problems += prompt_problems(config, model_path, (*tasks.train, *tasks.heldout))
    if problems or tasks is None or model_path is None:
        raise PreflightError(problems)
    return Cleared(model_path, tasks)


def _attempt(load: Callable[[], Loaded], problems: list[str]) -> Loaded | None:
    try:
        return load()
    except PreflightError as error:
        problems += error.problems
        return None


def _load_tasks(config: RunConfig) -> TaskSet:
    from rewards.tasks import load_tasks

    source = config.tasks.source
    try:
        return load_tasks(config.tasks)
    except (OSError, ValueError) as error:
        raise PreflightError([_named("tasks", error) + _shadowed(source)]) from error
    except Exception as error:  # attributed: a user's own loading function may raise anything
        raise PreflightError([f"tasks: source {source!r} raised {type(error).__name__}: {error}"]) from error


def _resolve_model(config: RunConfig) -> Path:
    from actors.model_store import ModelError, resolve_model

    try:
        return resolve_model(config.model)
    except ModelError as error:
        raise PreflightError([_named("model", error)]) from error


def _named(section: str, error: Exception) -> str:
    """The message, beginning with the section it is about."""
    return str(error) if str(error).startswith(section) else f"{section}: {error}"


def _shadowed(import_path: str) -> str:
    """A hint for a user whose own package has the name of one of Braid's."""
    package = import_path.partition(":")[0].partition(".")[0]
    own = [entry for entry in sys.path if (Path(entry or ".") / package).is_dir()]
    if package not in OWN_PACKAGES or len(own) < 2:
        return ""
    return f" (Braid's own package is called {package!r} and hides {Path(own[-1]) / package}: rename yours)"


# -- what it learns from ----------------------------------------------------------------------------------------


def supplied_sources(config: RunConfig) -> tuple[str, ...]:
    """Sources some box of this run fills: those of every run, imports, and what the cache collects of live groups."""
    past = config.replay.tables.get("own_past", TableConfig())
    collected = ("own_past",) if config.replay.live_share > 0 and past.collect != "nothing" else ()
    return tuple(dict.fromkeys([*SUPPLIED_SOURCES, *collected, *(entry.source for entry in config.replay.imports)]))


def source_problems(config: RunConfig) -> Iterator[str]:
    """Sources nobody fills, and terms that read what nobody supplies."""
    suppliers = supplied_sources(config)
    for source in config.replay.quotas:
        if source not in suppliers:
            yield (
                f"replay.quotas.{source}: nothing in this run supplies source {source!r}, so its share would never be "
                f"filled: drop the quota, or name data in replay.imports; sources with a supplier are "
                f"{', '.join(suppliers)}"
            )
    spliced = donor_sources(config.rollout.rules)
    for index, term in enumerate(config.terms):
        supplied = config.learner.supplies
        if term.source != "live":
            supplied -= SUPPLIED_BY_LIVE
        if term.source == "expert":
            supplied |= {"scores"}  # those on record with the answers
        if term.source == "own_past" and "own_past" in suppliers:
            supplied |= SUPPLIED_BY_LIVE
        if any(entry.source == term.source for entry in config.replay.imports):
            supplied |= SUPPLIED_BY_LIVE  # each group is asked when it is read
        if term.source in spliced:
            supplied |= SUPPLIED_BY_LIVE if term.source == "own_past" else {"scores"}
        missing = sorted(term.needs - supplied)
        sections = sorted({SECTION_OF_NEED[need] for need in missing if need in SECTION_OF_NEED})
        if sections:
            yield (
                f"terms[{index}] ({term.loss.name} on {term.source!r}) needs {' and '.join(missing)}: set "
                f"{' and '.join(sections)}, which say where they come from"
            )
        elif missing:
            yield (
                f"terms[{index}] ({term.loss.name} on {term.source!r}) needs {' and '.join(missing)}, which nothing in "
                f"this run supplies for that source: use another loss, or source 'live'"
            )


def unread_problems(config: RunConfig) -> Iterator[str]:
    """Models beside the policy that no term reads, so that they would be paid for and change nothing."""
    learner, needs = config.learner, frozenset().union(*(term.needs for term in config.terms))
    reads_values = "values" in needs
    if learner.critic is not None and not reads_values:
        yield "learner.critic is set, but no term reads values: set a term's advantage to 'gae' or 'v_trace'"
    if learner.teacher is not None and not needs & {"teacher_logprobs", "divergence"}:
        yield (
            "learner.teacher is set, but no term reads it: add on_policy_distillation or teacher_divergence, or drop it"
        )
    reads_reference = learner.critic is not None and reads_values and learner.critic.reads_reference
    if learner.reference.model is not None and "reference_logprobs" not in needs and not reads_reference:
        yield "learner.reference.model is set, but no term reads the reference: add kl_to_reference, or drop it"


def companion_problems(config: RunConfig, model_path: Path) -> Iterator[str]:
    """Reference or teacher that is not here, or that reads other tokens than the policy."""
    from transformers import AutoTokenizer

    from actors.assembly import companion_models
    from actors.model_store import ModelError, resolve_model

    named = companion_models(config.learner)
    vocabulary = AutoTokenizer.from_pretrained(str(model_path)).get_vocab() if named else {}
    for role, model in named.items():
        try:
            folder = resolve_model(model)
        except ModelError as error:
            yield f"learner.{role}.model: {error}"
            continue
        if AutoTokenizer.from_pretrained(str(folder)).get_vocab() != vocabulary:
            yield (
                f"learner.{role}.model={model!r} has another tokenizer than model={config.model!r}, so its log-probs "
                "would be of other words: name a model of the same family"
            )


def rule_problems(config: RunConfig) -> Iterator[str]:
    """Rules for scored groups that do not exist or cannot be carried out."""
    from actors.finisher import Finisher

    try:
        Finisher(config.rollout.rules)
    except ValueError as error:
        yield _named("rollout.rules", error)


def reward_problems(config: RunConfig) -> Iterator[str]:
    """Verifiers and judges that cannot be found or do not take their options."""
    from rewards.judges.table import check_judges
    from rewards.rubric import Rubric

    try:
        Rubric(config.reward)
        check_judges(config.reward)
    except ValueError as error:
        hints = (_shadowed(component.verifier) for component in config.reward.components.values())
        yield _named("reward", error) + next(filter(None, hints), "")


def answer_problems(config: RunConfig, tasks: TaskSet) -> Iterator[str]:
    """Tasks whose reference a required built-in verifier cannot use.

    A few of them are masked while the run goes on; as many as would stop the run are refused.
    """
    from rewards.rubric import VERIFIERS, resolve_verifier

    every = (*tasks.train, *tasks.heldout)
    looked_at = every[:: max(1, len(every) // MAX_JUDGED_TASKS)]
    for name, component in config.reward.components.items():
        if component.verifier not in VERIFIERS or not component.required:
            continue
        try:
            verify = resolve_verifier(component.verifier)
        except ValueError:
            continue  # told by the check of the reward
        useless = [(task, why) for task in looked_at if (why := _gold_fault(verify, task, component.options))]
        if len(useless) > config.reward.max_unscored_fraction * len(looked_at):
            task, why = useless[0]
            yield (
                f"reward.components.{name}: verifier {component.verifier!r} cannot judge answers to {len(useless)} of "
                f"{len(looked_at)} tasks looked at, e.g. {task.task_id!r}: {why}. Supply reference answers (tasks."
                "options.reference_column), or use a verifier that needs none"
            )


def _gold_fault(verify: Callable[..., object], task: Task, options: dict[str, object]) -> str | None:
    """Why no answer to this task could be judged, or None."""
    try:
        verdict = verify("0", task, **options)
    except Exception:  # attributed elsewhere: here only the verdict on the reference counts
        return None
    if getattr(verdict, "status", None) is not Status.INVALID_GOLD:
        return None
    return str(getattr(verdict, "extras", {}).get("error", "its reference is unusable"))


def expert_problems(config: RunConfig, tasks: TaskSet) -> Iterator[str]:
    """A quota of expert groups that the tasks cannot fill, or imitation of answers that are on record as bad."""
    share = config.replay.quotas.get("expert")
    if share is None:
        return
    yield from _recorded_score_problems(config, sum(any(e.score < 1.0 for e in task.expert) for task in tasks.train))
    num_expert = sum(bool(task.expert) for task in tasks.train)
    if num_expert == 0 and any(entry.source == "expert" for entry in config.replay.imports):
        return
    if num_expert == 0:
        yield (
            f"replay.quotas.expert={share} but none of the {len(tasks.train)} training tasks has an expert response: "
            "supply them (tasks.options.response_column or expert_from_reference for files), or drop the quota"
        )
        return
    max_uses = config.replay.max_uses.get("expert")
    needed = config.num_steps * share * config.replay.groups_per_update
    if max_uses is not None and num_expert * max_uses < needed and config.replay.live_share == 0:
        yield (
            f"{num_expert} expert groups x replay.max_uses.expert={max_uses} are fewer than the {float(needed):g} that "
            f"{config.num_steps} steps take: raise max_uses, lower num_steps, or supply more responses"
        )


def _recorded_score_problems(config: RunConfig, num_pairs: int) -> Iterator[str]:
    """Imitation of answers that are on record as bad, or comparisons where none is.

    Args:
        num_pairs: training tasks with a rejected answer.
    """
    for index, term in enumerate(config.terms):
        if term.source != "expert" or "expert" in donor_sources(config.rollout.rules):
            continue
        compares = "scores" in term.needs and (term.advantage != "score" or term.loss.couples_groups)
        if num_pairs and "scores" not in term.needs:
            yield (
                f"terms[{index}] ({term.loss.name}) reads no scores, so it would imitate the rejected answers too that "
                f"{num_pairs} training tasks hold: use a loss over pairs, or leave the rejected answers out"
            )
        if compares and not num_pairs:
            yield (
                f"terms[{index}] ({term.loss.name}, advantage {term.advantage!r}) compares expert answers, but all of "
                "them count 1: supply rejected ones (tasks.options.rejected_column for files), or use another loss"
            )


def help_problems(config: RunConfig, tasks: TaskSet) -> Iterator[str]:
    """Help and donors that no training task has the text for, so that the method would silently be another one."""
    for index, entry in enumerate(config.guidance.contexts):
        for spec in filter(None, entry.contexts):
            if not any(source_text(task, as_context(spec, 0)) for task in tasks.train):
                yield (
                    f"guidance.contexts[{index}]: kind={spec.kind!r} shows text={spec.text!r}, but none of the "
                    f"{len(tasks.train)} training tasks has it, so all would be asked plainly: supply expert responses "
                    "(tasks.options.response_column for files), or name a key of the tasks' metadata"
                )
    if "expert" in donor_sources(config.rollout.rules) and not any(task.expert for task in tasks.train):
        yield (
            f"rollout.rules splice expert answers into groups, but none of the {len(tasks.train)} training tasks has "
            "one: supply them (tasks.options.response_column for files), or leave the rule out"
        )


def evaluation_problems(config: RunConfig, tasks: TaskSet) -> Iterator[str]:
    """Evaluations of nothing."""
    evaluation = config.evaluation
    if evaluation.every and not tasks.heldout:
        yield f"evaluation.every={evaluation.every} but there are no held-out tasks: raise tasks.num_heldout, or set 0"
    tag = evaluation.split_by
    if tag is not None and tasks.heldout and not any(tag in task.tags for task in tasks.heldout):
        known = sorted({name for task in tasks.heldout for name in task.tags})
        yield f"evaluation.split_by={tag!r} is a tag of no held-out task: known tags are {', '.join(known) or 'none'}"


# -- what fits --------------------------------------------------------------------------------------------------


def context_problems(config: RunConfig, model_path: Path) -> Iterator[str]:
    """A context longer than the model was made for."""
    model = json.loads((model_path / "config.json").read_text())
    limit = model.get("max_position_embeddings") or model.get("text_config", {}).get("max_position_embeddings")
    length = config.rollout.engine.max_model_len
    if limit is not None and length > limit:
        yield (
            f"rollout.engine.max_model_len={length} but model {config.model!r} has {limit} positions: lower it to at "
            f"most {limit}"
        )


def prompt_problems(config: RunConfig, model_path: Path, tasks: Iterable[Task]) -> Iterator[str]:
    """Prompts that leave no room for an answer; tokens are counted as the run will count them."""
    room = config.rollout.engine.max_model_len - config.rollout.sampling.max_new_tokens
    try:
        renderer = Renderer(str(model_path), config.tasks.system_prompt)
        lengths = {task.task_id: length for task in tasks if (length := _tokens_above(renderer, task, room))}
    except (RenderError, OSError, ValueError) as error:
        yield f"model {config.model!r}: its prompts cannot be rendered: {error}"
        return
    if lengths:
        task_id, longest = max(lengths.items(), key=lambda item: item[1])
        yield (
            f"{len(lengths)} prompts leave no room for an answer: the longest, of task {task_id!r}, has {longest} "
            f"tokens and rollout.sampling.max_new_tokens={config.rollout.sampling.max_new_tokens}, more than "
            f"rollout.engine.max_model_len={config.rollout.engine.max_model_len}. Raise max_model_len to at least "
            f"{longest + config.rollout.sampling.max_new_tokens}, or remove these tasks"
        )


def _tokens_above(renderer: Renderer, task: Task, room: int) -> int:
    """Tokens of the prompt where there are more than `room`, else 0."""
    length = len(renderer.prompt_ids(task.messages))
    return length if length > room else 0
