"""Errors of the benchmarks package."""


class BenchmarksError(Exception):
    """Base of every error that this package raises."""


class GoldenSetError(BenchmarksError):
    """A golden set is no golden set, or does not fit the model: fix the file. The message says expected and got."""


class MeasureError(BenchmarksError):
    """A model could not be opened, or an inference failed, was not finite or had a wrong shape: do not use this variant."""


class RuntimeMissingError(MeasureError):
    """No opener for this runtime, or the runtime is not installed on this machine."""
