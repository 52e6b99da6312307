"""Checks the text templates of task options before any task is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter


def check_template(setting: str, template: str, *, required: str, optional: Sequence[str] = ()) -> None:
    """Makes sure that `template.format(...)` uses the required field and only fields that will be there.

    Args:
        setting: full name of the config value, for the message.
        required: name of the field that must occur.
        optional: names that may occur as well.

    Raises:
        ValueError: malformed, lacks the field, or asks for one that does not exist.
    """
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{setting}={template!r} is not a template: {error}. Write a literal brace twice.") from error
    if required not in fields:
        raise ValueError(f"{setting}={template!r} lacks {{{required}}}")
    unknown = sorted(fields - {required, *optional})
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in (required, *optional))
        raise ValueError(f"{setting}={template!r} asks for {{{unknown[0]}}}, which does not exist: known are {known}")
