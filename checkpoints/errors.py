"""The one exception that a command shows as a single line, without a traceback.

A module below `pipeline` knows no option, no make target and no package manager. It says in its own words what was
given, what is allowed and what to do, and names the argument at fault:

    raise UserError(f"{p} is not a probability; give a number from 0 to 1", argument="p")

Python users read "p: 1.5 is not a probability; ...". `pipeline.config.option_errors.explain` turns the argument into the
option that sets it, in the planning process and in a stage's worker alike: "augmentation.p: 1.5 is not ...". So an
argument that an option sets bears the option's name. Where one call looks at several things, the caller says which:

    with about("intermediate"):
        check_length(config, max_length=600)  # "intermediate.max_length: 600 is above ..."
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRORS = (*FULL, errno.EROFS, errno.EIO)


class UserError(ValueError):
    """A mistake that the user can fix.

    Args:
        message: what was given, what is allowed, and what to do; without the argument's name.
        argument: the argument at fault, if it is one.
        package: a Python package that must be installed; `pipeline` adds how.
    """

    def __init__(self, message: str, argument: str = "", package: str = ""):
        super().__init__(message)
        self.argument, self.package = argument, package

    def __str__(self) -> str:
        text = f"{self.argument}: {super().__str__()}" if self.argument else super().__str__()
        return " ".join(text.splitlines())  # names in it may hold line ends


@contextmanager
def about(name: str) -> Iterator[None]:
    """Put `name` before the argument that a `UserError` of the block names: "intermediate" makes "intermediate.p"."""
    try:
        yield
    except UserError as error:
        error.argument = f"{name}.{error.argument}" if error.argument else name
        raise


def check_file(path: Path, advice: str, argument: str = "") -> None:
    """Raise a UserError, which ends with the advice, unless there is a file of this path."""
    if not path.is_file():
        what = "it is a directory" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; {advice}", argument)


def to_user_error(error: OSError) -> UserError:
    """A file or disk error as a `UserError`. Any other error of the system is raised again."""
    if error.filename is None and error.errno not in DISK_ERRORS:
        raise error
    where = error.filename if error.filename is not None else "a file of the run"
    if error.errno in FULL:
        return UserError(
            f"no space left to write {where}: free some space and run the same command again; what was saved before is "
            "intact"
        )
    return UserError(
        f"{where}: {error.strerror}; fix this (is the path occupied, read-only or unmounted?) and run the same "
        "command again: what was saved before is intact"
    )
