"""Where a device can stand in a rollout, as the API and the commands name it."""

import enum

MAX_PAGE = 1000
"""The most devices that one page of the API names."""


class Standing(enum.StrEnum):
    """Where a device stands in a rollout."""

    NOT_REACHED = "not-reached"
    """It has said nothing of the rollout, and does not run the candidate."""
    STARTED = "started"
    ON_CANDIDATE = "on-candidate"
    """It says that it runs the candidate, and has not committed yet."""
    COMMITTED = "committed"
    FAILED = "failed"
    """It refused the candidate, went back by itself, or could not install it this time; see its error."""
    GAVE_UP = "gave-up"
    """Its desired state changed, or the deadline passed, before it was done."""
    BACK = "back"
    """The candidate was taken back, and it has proved to run something else."""
    NOT_PROVED = "not-proved"
    """The candidate was taken back, and it has not proved to be off it."""


RETRYABLE = (Standing.FAILED, Standing.GAVE_UP)
"""Where asking a device to try again may help."""
