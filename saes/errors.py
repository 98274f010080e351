"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """A mistake in what the user gave: says what was expected, what came and what to do.

    The command line prints it as one line and exits with 2; everything else is a defect of ours and keeps its traceback.
    """
