"""Which file of a directory holds which split: by their names."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks.tables import SUFFIXES
from stages.tasks.types import TaskSource

ROLES = {
    "train": ("train", "training", "trainset"),
    "dev": ("dev", "devel", "development", "val", "valid", "validate", "validation", "devset", "valset"),
    "test": ("test", "testing", "testset"),
}
"""Role -> the words in the names of its files."""
EITHER = ("eval", "evaluation")  # dev if there is no other, else test
WORDS = {word for words in (*ROLES.values(), EITHER) for word in words}
HIDDEN = (".", "~$")  # also what macOS and Excel leave beside a file


def data_files(data: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, Path]:
    """Return role -> file. A file is train's. In a directory the names decide (`ROLES`), of tables or of folders of tables.

    A directory may also be one that `datasets` saved, or hold its tables in `data`, as on the hub. The further parts of
    a table (train-00001-of-00002.parquet, or train/0001.parquet) are "train.2", "train.3", ...

    Raises:
        UserError: the directory has no file for train, or two for one role.
    """
    if not data.is_dir() or (data / "state.json").is_file():
        return {"train": data}
    if (data / "dataset_dict.json").is_file():
        found = [path for path in sorted(data.iterdir()) if (path / "state.json").is_file()]
    else:
        found = _tables(data, suffixes)
    named: dict[str, list[Path]] = {role: _of_role(found, words, data) for role, words in ROLES.items()}
    either = _of_role(found, EITHER, data)
    role = next((role for role in ("dev", "test") if not named[role]), "")
    if either and role:
        named[role] = either
    files: dict[str, Path] = {}
    for role, paths in named.items():
        stems = [path.name.partition(".")[0] for path in paths]
        parts = [re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(-[0-9a-f]{16})?", stem) for stem in stems]
        counted = sorted(map(int, stems)) == [*range(len(stems))] if all(map(str.isdigit, stems)) else False
        if len(paths) > 1 and not all(parts) and not counted:
            raise UserError(
                f"{data} holds both {paths[0].name} and {paths[-1].name}; keep one", argument="data"
            )
        if paths and parts[0] and len(paths) != int(parts[0][3]):
            raise UserError(
                f"{data} holds {len(paths)} parts of {parts[0][1]}, not {int(parts[0][3])}; add the others",
                argument="data",
            )
        files |= {f"{role}.{n}" if n > 1 else role: path for n, path in enumerate(paths, start=1)}
    if "train" not in files and (data / "data").is_dir():
        return data_files(data / "data", suffixes)
    if "train" not in files:
        others = [path.name for path in found or sorted(data.iterdir()) if not path.name.startswith(HIDDEN)]
        there = f" (it has {', '.join(others[:5])})" if others else ""
        raise UserError(
            f"{data} holds no train file{there}; give a directory that holds train, with one of the endings "
            f"{', '.join(suffixes)}",
            argument="data",
        )
    return files


def _tables(directory: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The tables in a directory, and in its folders with the name of a split."""
    folders = [path for path in directory.iterdir() if path.is_dir() and path.name.lower() in WORDS]
    return sorted(
        path
        for path in chain(directory.iterdir(), *(folder.iterdir() for folder in folders))
        if path.is_file() and path.name.lower().endswith(suffixes) and not path.name.startswith(HIDDEN)
    )


def _of_role(paths: list[Path], words: tuple[str, ...], directory: Path) -> list[Path]:
    """The files of one role: those that are named so, or their folder; else those with one of the words in their names."""
    others = WORDS - set(words)
    stems = {path: path.relative_to(directory).parts[0].partition(".")[0] for path in paths}
    exact = [path for path in paths if stems[path].lower() in words]
    if exact:
        return exact
    parts = {path: {p.lower() for p in re.findall("[A-Z]?[a-z]+|[A-Z]+", stems[path])} for path in paths}
    of_none = {"unlabeled", "unlabelled", "unsupervised", "predictions", "predicted"}
    return [path for path in paths if parts[path] & set(words) and not parts[path] & (others | of_none)]


def shown(path: Path) -> str:
    """Return a file's name for a note, with its folder where that says which split it is."""
    return f"{path.parent.name}/{path.name}" if path.parent.name.lower() in WORDS else path.name


def unread(source: TaskSource) -> list[str]:
    """A note on the tables beside train's that are not read, where names like train's say that they belong together."""
    train = Path(source.files["train"])
    read = {Path(name) for name in source.files.values()}
    above = (train.parent, train.parent.parent)  # data/train.csv, or data/train/0000.csv
    directory = next((path for path in above if _of_role([train], ROLES["train"], path)), None)
    if train.is_dir():
        found = [path for path in sorted(train.parent.iterdir()) if (path / "state.json").is_file()]
    elif directory:
        suffixes = SUFFIXES if train.name.lower().endswith(SUFFIXES) else (train.suffix,)
        tables = _tables(directory, suffixes)
        of_split = (
            path for path in sorted(directory.iterdir()) if path.name.partition(".")[0].lower() in WORDS
        )
        found = list(dict.fromkeys([*tables, *(path for path in of_split if path.is_file())]))
    else:
        return []
    others = [shown(path) for path in found if path.resolve() not in read]
    usual = " (a directory is read by the usual names of its files: train, dev or validation, test)"
    return [f"not read: {', '.join(others[:10])}{usual if len(read) == 1 else ''}"] if others else []
