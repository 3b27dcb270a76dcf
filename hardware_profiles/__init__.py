"""What a device can do: one TOML file per kind of device, and the few functions that read them and this machine.

A leaf beside `signer`: it imports nothing of the project, and never imports a runtime, only looks whether one is installed.
"""
