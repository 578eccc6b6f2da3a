"""The whole error tree.

InputError: the caller gave something unusable.      UnfitError: this model or site cannot take what was asked.
ParityError: a result disagrees with its reference.  RankError: a process of a distributed run is gone, hangs or differs.
Each says what was given, what is allowed, and what to try next.
"""


class LightenError(Exception):
    """Root of every error that `lighten` raises on purpose; the command line prints it in one line and exits with 2.

    hint: what the user may try next, one sentence; empty when there is nothing to suggest.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(LightenError):
    """The caller's input is wrong: a path, a file, a recipe, a label, a missing extra."""


class UnfitError(LightenError):
    """This model, or this site of it, cannot take what was asked of it."""


class ParityError(LightenError):
    """A result disagrees with its reference: an exported file with the torch graph, a file with its hash."""


class RankError(LightenError):
    """A rank of a distributed run is gone, does not answer, failed alone or has other weights than the rest. rank: which, None
    where nothing tells. is_lost: the run may go on from its last checkpoint when it is started again.
    """

    def __init__(self, message: str, *, rank: int | None = None, is_lost: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rank, self.is_lost = rank, is_lost
