"""The one error of the evaluator."""


class MilError(Exception):
    """A package cannot be read, or not be evaluated as CoreML would.

    `op_type` and `output` name the operation and its first output, "" where the file or an input is to blame; `reason` says
    what was expected and what came.
    """

    def __init__(self, reason: str, *, op_type: str = "", output: str = "") -> None:
        super().__init__(f"{op_type} {output!r}: {reason}" if op_type else reason)
        self.op_type = op_type
        self.output = output
        self.reason = reason
