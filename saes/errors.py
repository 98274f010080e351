"""The one exception that a user's mistake raises, and what every command refuses with it."""


class UserError(ValueError):
    """A mistake in what the user gave: says what was expected, what came and what to do.

    The command line prints it as one line and exits with 2; everything else is a defect of ours and keeps its traceback.
    """


def check_seed(seed: int) -> None:
    """UserError for a seed that torch's generators do not take."""
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"expected a seed of 64 bits; got {seed}; give a smaller one")
