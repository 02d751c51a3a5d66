"""The one exception that is shown to the user as a single line, without a traceback."""

import errno

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class UserError(Exception):
    """A mistake the user can mend. Its message names the value, the limit and what to do."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # names in it may hold line ends


def to_user_error(error: OSError) -> UserError:
    """What the system said of a file, as a message for the user. An error of anything else is raised again."""
    if error.filename is None and error.errno not in OF_THE_DISK:
        raise error
    where = error.filename if error.filename is not None else "a file of the run"
    return UserError(f"{where}: {error.strerror}; mend that (is it a file in the way, not writable, not mounted?) "
                     "and run the same command again: what was saved before is intact")  # fmt: skip
