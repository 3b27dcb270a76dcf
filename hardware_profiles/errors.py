"""Errors of the hardware_profiles package."""


class HardwareProfilesError(Exception):
    """Base of every error that this package raises."""


class ProfileError(HardwareProfilesError):
    """A profile file does not follow the schema: fix the file. The message names it, and says expected and got."""


class FactsError(HardwareProfilesError):
    """What a device says of itself is not of the expected form: refuse it."""
