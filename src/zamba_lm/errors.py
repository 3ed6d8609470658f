"""The one exception a user's mistake raises."""


class ZambaError(ValueError):
    """A mistake the user can mend: one line that names the value, what was expected and what to do.

    The command line prints it as ``error: ...`` without a traceback; anything else that escapes is a bug of ours.
    """
