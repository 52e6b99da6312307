"""`braid watch` and `braid timeline`: what they take from the command line, and how they fail."""

from __future__ import annotations

from argparse import Namespace
from contextlib import suppress

from orchestrator.commands import CommandError
from orchestrator.run_folders import find_run


def watch(args: Namespace) -> int:
    """The live page of a run, until it ends or Ctrl-C."""
    from orchestrator.summary import NoSummaryError
    from orchestrator.watch import watch_run

    try:
        with suppress(KeyboardInterrupt):
            watch_run(find_run(args.run, args.runs), show_page=not args.no_view)
    except NoSummaryError as error:
        raise CommandError(str(error), exit_code=1) from error
    return 0


def timeline(args: Namespace) -> int:
    """The course of a run as a trace for ui.perfetto.dev."""
    from orchestrator.summary import NoSummaryError
    from orchestrator.timeline import write_timeline

    try:
        print(write_timeline(find_run(args.run, args.runs), args.into))
    except NoSummaryError as error:
        raise CommandError(str(error)) from error
    return 0
