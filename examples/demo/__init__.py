"""The main job on one machine: real service, real signer, real agents, real data, everything on loopback."""
