"""Keep coremltools quiet: its progress bars, log lines and warnings tell nothing that a build's user can use."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Generator

_LOGGER = "coremltools"


@contextlib.contextmanager
def hushed() -> Generator[None]:
    """Run with coremltools' output discarded; it is imported here for the first time, or not at all."""
    logger = logging.getLogger(_LOGGER)
    before, bars = logger.level, os.environ.get("TQDM_DISABLE")
    logger.setLevel(logging.CRITICAL)
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        if bars is None:
            os.environ.pop("TQDM_DISABLE", None)
        else:
            os.environ["TQDM_DISABLE"] = bars
