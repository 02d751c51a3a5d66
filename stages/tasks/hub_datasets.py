"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from checkpoints.errors import UserError


def load_hub(
    name: str, config: str | None, revision: str | None, instead: str, argument: str, **options: Any
) -> Any:
    """Call `datasets.load_dataset`.

    Args:
        instead: what the user can do where the hub cannot be reached.
        argument: what the error names.
        **options: for `load_dataset`.

    Raises:
        UserError: the hub or the data set cannot be reached.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config, revision=revision, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the hub data set {name!r} cannot be loaded ({reason}); {instead}", argument
        ) from error
