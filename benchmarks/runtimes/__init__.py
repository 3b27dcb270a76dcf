"""One file per runtime: how it opens a variant's entry file, on a device and for the proof.

A runtime is imported inside its opener, so that a device needs only the one it has.
"""
