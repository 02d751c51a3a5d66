"""Making an object of a registry from a line of a recipe: `name`, or `{name: {setting: value}}`."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from checkpoints.errors import UserError, about

T = TypeVar("T")


def build_from_line(
    line: Any,
    known: Mapping[str, type[T]],
    argument: str,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """Make the object that a line of a recipe describes.

    Args:
        line: the name, or {name: settings}.
        known: the registry: name -> class, whose constructor's arguments are the settings.
        argument: the key of the recipe under which the line stands.
        given: arguments that are not settings; each class gets those that it takes.
        defaults: values of settings that the line does not give, for classes that have these settings.

    Raises:
        ValueError: there is no such name or setting, or a setting's value is refused.

    Example:
        >>> from stages.distillation.losses import LOSSES
        >>> build_from_line({"soft_labels": {"temperature": 2.0}}, LOSSES, "losses", given={})
        SoftLabels()
    """
    if isinstance(line, str):
        line = {line: {}}
    if not isinstance(line, dict) or len(line) != 1:
        raise UserError(f"{line!r} is not `- name` or `- name: {{setting: value}}`", argument=argument)
    ((name, settings),) = line.items()
    if name not in known:
        raise UserError(f"{name!r} is unknown; there are {', '.join(sorted(known))}", argument=argument)
    settings = settings or {}
    takes = inspect.signature(known[name]).parameters
    own = [setting for setting in takes if setting not in given]
    if not isinstance(settings, dict) or settings.keys() - set(own):
        raise UserError(
            f"{settings!r} must be among its settings: {', '.join(own)}", argument=f"{argument}.{name}"
        )
    values = dict(given) | dict(defaults or {})
    values = {key: value for key, value in values.items() if key in takes} | settings
    if missing := [k for k, taken in takes.items() if k not in values and taken.default is taken.empty]:
        raise UserError(
            f"needs {', '.join(missing)}: write `- {name}: {{{missing[0]}: ...}}`",
            argument=f"{argument}.{name}",
        )
    with about(f"{argument}.{name}"):
        return known[name](**values)
