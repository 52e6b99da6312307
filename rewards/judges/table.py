"""Judges by the name a config uses, and how a component finds its function."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from rewards.config import RewardComponent, RewardConfig
from rewards.import_path import ImportPathError, load_callable
from rewards.judges.config import JudgeConfig

JUDGES: dict[str, str] = {
    "judge_critique": "rewards.judges.groups:judge_critique",
    "judge_first_error": "rewards.judges.answers:judge_first_error",
    "judge_listwise": "rewards.judges.groups:judge_listwise",
    "judge_pairwise": "rewards.judges.groups:judge_pairwise",
    "judge_principle": "rewards.judges.answers:judge_principle",
    "judge_reference": "rewards.judges.answers:judge_reference",
    "judge_rubric": "rewards.judges.answers:judge_rubric",
    "judge_scale": "rewards.judges.answers:judge_scale",
}

GROUP_JUDGES = frozenset({"judge_critique", "judge_listwise", "judge_pairwise"})
"""Those of them that judge all answers of a group at once."""

ADMITTED_UNSEEN = frozenset({"judge_first_error"})
"""Those that only ever see answers a verifier has called right, so that answers without content never reach them."""

SCALAR = "reward_model"
"""The verifier of components in a pool whose service returns numbers: a scalar reward model or a score endpoint."""


def resolve_judge(name: str, component: RewardComponent) -> Callable[..., Any]:
    """The judge of a component.

    Raises:
        ImportPathError: there is none of that name.
        ValueError: it does not take the options, or the scope is not the judge's.
    """
    where = f"reward.components.{name}"
    try:
        judge = load_callable(JUDGES.get(component.verifier, component.verifier), purpose="judge", known_names=JUDGES)
    except ImportPathError as error:
        raise ImportPathError(f"{where}: {error}") from error
    try:
        inspect.signature(judge).bind("", None, None, **component.options)
    except TypeError as error:
        raise ValueError(
            f"{where}: judge {component.verifier!r} cannot be called as (answer, task, ask, **options) with options "
            f"{component.options}: {error}"
        ) from error
    if component.verifier in JUDGES and (component.scope == "group") != (component.verifier in GROUP_JUDGES):
        needed = "group" if component.verifier in GROUP_JUDGES else "sample"
        raise ValueError(f"{where}: judge {component.verifier!r} needs scope: {needed}")
    return judge


def check_judges(config: RewardConfig) -> None:
    """Raises what is wrong with the components that models judge: see `resolve_judge`, and ValueError for votes that
    would all be one, for a missing key, and for a service that does not go with its verifier."""
    for name, component in config.components.items():
        if (service := config.service_of(component)) is None:
            continue
        where = f"reward.components.{name}"
        key = getattr(service, "api_key_env", None)
        if key is not None and not os.environ.get(key):
            raise ValueError(
                f"{where}: the service's key is read from the environment variable {key}, which is not set"
            )
        if not isinstance(service, JudgeConfig):
            if component.verifier != SCALAR or component.scope != "sample" or component.options:
                raise ValueError(
                    f"{where}: a service of kind {service.kind!r} returns a number for each answer: write verifier: "
                    f"{SCALAR}, scope: sample and no options"
                )
            continue
        resolve_judge(name, component)
        votes = component.options.get("votes", 1)
        if votes > 1 and component.scope == "sample" and service.temperature == 0:
            raise ValueError(
                f"{where}: {votes} votes at temperature 0 would all be one: raise the service's temperature"
            )
