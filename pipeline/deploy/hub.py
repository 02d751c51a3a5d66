"""The Hugging Face hub: pin names to a revision, and upload exported models."""

import re
from pathlib import Path

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.store import read_json

SECONDS = 5
"""Timeout of a request."""


def pin(name: str, kind: str, instead: str, run: Path) -> dict[str, str]:
    """Resolve a hub name to {"hub": name, "revision": sha}. The run keeps the first result, so it never changes.

    Args:
        name: "owner/name" or "name", optionally with "@revision".
        kind: "model" or "dataset".
        instead: ends the error message: what to give if the hub cannot be reached.

    Raises:
        UserError: the hub cannot be reached, or has no such name.
    """
    name, _, revision = name.partition("@")
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return {"hub": name, "revision": revision}
    path = run / "hub.json"
    pinned = read_json(path)
    key = f"{kind} {name}@{revision or 'main'}"
    if key not in pinned:
        pinned[key] = _ask(name, kind, revision or "main", instead)
        run.mkdir(parents=True, exist_ok=True)
        store.write_json(path, pinned)
    return {"hub": name, "revision": pinned[key]}


def _ask(name: str, kind: str, revision: str, instead: str) -> str:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    api = huggingface_hub.HfApi()
    try:
        ask = api.model_info if kind == "model" else api.dataset_info
        return ask(name, revision=revision, timeout=SECONDS).sha or revision
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"there is no {kind} {name!r} (revision {revision}) on the hub and no such directory here; {instead}"
        ) from error
    except Exception as error:  # a network fails in many ways
        cached = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / revision
        if cached.is_file():
            return cached.read_text().strip()
        here = "there is no such directory here, and " if kind == "model" else ""
        raise UserError(
            f"{kind} {name!r}: {here}the hub is out of reach ({type(error).__name__}); {instead}"
        ) from error


def config_file(model: dict[str, str]) -> Path:
    """The config.json of a model's entry: in its directory, or fetched from the hub at its revision.

    Raises:
        UserError: the hub cannot be reached, or the model has none.
    """
    if "path" in model:
        return Path(model["path"]) / "config.json"
    import huggingface_hub

    name = model["hub"]
    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json", revision=model["revision"]))
    except Exception as error:  # a network fails in many ways
        raise UserError(
            f"config.json of {name!r} could not be fetched from the hub ({type(error).__name__}); "
            "give a local directory of the model"
        ) from error


def check_push(name: str) -> None:
    """Check the target of `push` before a long export.

    Raises:
        UserError: the name is malformed, or the user is not logged in.
    """
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"push={name!r} must be OWNER/NAME, such as push=me/my-student")
    if not huggingface_hub.get_token():
        raise UserError("push= needs you to be logged in to the hub: run `hf auth login`, or set HF_TOKEN")


def push(directory: Path, name: str) -> str:
    """Upload a directory as the model `name`; a new model is private. Return its address.

    Raises:
        UserError: the hub cannot be reached, or refuses; the directory stays as it is.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="Export of tinydistil")
    except Exception as error:  # a network fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} could not be uploaded ({type(error).__name__}: {reason}); {directory} is complete: "
                        f"try again with `hf upload {name} {directory}`") from error  # fmt: skip
    return str(address)
