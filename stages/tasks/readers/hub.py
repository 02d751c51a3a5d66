"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from checkpoints.errors import UserError


def load_hub(name: str, config: str | None, revision: str | None, instead: str, **options):
    """Return what `datasets.load_dataset` gives.

    Raises:
        UserError: the hub or the data set cannot be reached; `instead` says what could be given.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config, revision=revision, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the hub data set {name!r} cannot be loaded ({reason}); {instead}") from error
