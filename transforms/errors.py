"""Errors that a user can cause and mend."""


class UserError(Exception):
    """One clear sentence: what was expected, what came, where, and what to do.

    The command line prints it and exits with code 2, without a traceback.
    """
