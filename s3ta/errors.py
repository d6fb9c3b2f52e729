"""The one error that is the user's to mend."""


class UserError(ValueError):
    """Bad input. The message names the value, the constraint and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """
