"""The error that a user can act on. It is here because schemas imports no other package of ours."""


class UserError(Exception):
    """An error that the user can fix: what is wrong and where, and what to do about it.

    Every command prints it as one line and exits with status 1.
    """

    def __init__(self, problem: str, fix: str = ""):
        super().__init__(problem, fix)
        self.problem, self.fix = problem, fix

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}" if self.fix else self.problem
