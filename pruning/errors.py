"""The one error that bad input raises, on whichever side of the job queue it is found."""


class InvalidInput(ValueError):
    """A value given by a user that cannot be accepted.

    `field` names the value (dotted, as in the request body), `message` says what is wrong with it
    and what to give instead.  The gateway answers 400 (or `status`) with both; a job that meets
    one in a stage fails with both in its `error`.
    """

    def __init__(self, field: str, message: str, *, code: str = "invalid_value", status: int = 400):
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.code = code
        self.status = status
