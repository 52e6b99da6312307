"""Actors of a run from outside: their methods as coroutines, their names, where they are, and how they end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

LOST = (RayActorError, ActorDiedError, ActorUnavailableError)
"""A process of the run is gone or cannot be reached."""

RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, *(5.0,) * 24)
"""Waits between tries of a keyed call; the actor that takes a lost one's place answers long before the last."""


class ActorPort:
    """An actor's methods as coroutines.

    Calls to boxes that keep state under a name are retried against the current holder of that name: every mutating
    call carries a key, so a call that ran although its reply was lost does nothing the second time.
    """

    def __init__(self, handle: Any, *, name: str | None = None, namespace: str | None = None) -> None:
        self._handle, self._name, self._namespace = handle, name, namespace

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            for delay in (*RETRY_DELAYS_S, None):
                try:
                    return await getattr(self._handle, method).remote(*args, **kwargs)
                except LOST:
                    if self._name is None or delay is None:
                        raise
                    await asyncio.sleep(delay)
                    self._reattach(self._name)

        return call

    def _reattach(self, name: str) -> None:
        with suppress(ValueError):  # no holder of that name yet; the next try asks again
            self._handle = ray.get_actor(name, self._namespace)

    def __reduce__(self) -> tuple[Any, ...]:
        return _port, (self._handle, self._name, self._namespace)


def _port(handle: Any, name: str | None, namespace: str | None) -> ActorPort:
    return ActorPort(handle, name=name, namespace=namespace)


class Joined:
    """One long call that several callers wait for; a caller that goes away does not end it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    @property
    def has_begun(self) -> bool:
        return self._task is not None

    async def join(self, begin: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of the one call, which the first caller begins."""
        if self._task is None:
            self._task = asyncio.ensure_future(begin())
        return await asyncio.shield(self._task)


class Located:
    """Says where a box runs; another process id tells that its process was replaced."""

    async def place(self) -> tuple[str, int]:
        """Ray's id of the node, and the process id on it."""
        return this_node(), os.getpid()


def actor_names(namespace: str) -> list[str]:
    """Of all living actors of a run."""
    named = cast(list[dict[str, str]], ray.util.list_named_actors(all_namespaces=True))
    return sorted(actor["name"] for actor in named if actor["namespace"] == namespace)


def end_actors(namespace: str, *, but: str = "") -> None:
    """Kills all actors of a run except the one of the name `but`."""
    for name in actor_names(namespace):
        if name != but:
            with suppress(ValueError):  # it ended by itself since it was listed
                ray.kill(ray.get_actor(name, namespace))


async def end_actor(name: str, namespace: str) -> None:
    """Kills the actor of a name, where there is one, and waits until the name is free."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace))
    while is_named(name, namespace):  # noqa: ASYNC110 - Ray sets no event
        await asyncio.sleep(0.1)


def is_named(name: str, namespace: str) -> bool:
    try:
        ray.get_actor(name, namespace)
    except ValueError:
        return False
    return True


def is_lost(error: BaseException) -> bool:
    """Whether a process of the run is gone, also when another process was the one that noticed."""
    return isinstance(error, LOST) or isinstance(getattr(error, "cause", None), LOST)


def this_node() -> str:
    return ray.get_runtime_context().get_node_id()
