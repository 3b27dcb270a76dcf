"""Measure a variant on this machine, against its golden set: the server does it before signing, the device before activating.

Needs numpy and the variant's runtime, nothing else. `suites/` holds the project's own speed tests and is no part of this package.
"""
