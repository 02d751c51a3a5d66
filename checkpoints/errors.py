"""The one exception that is shown to the user as a single line, without a traceback."""


class UserError(Exception):
    """A mistake the user can mend. Its message names the value, the limit and what to do."""
