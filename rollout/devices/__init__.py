"""A rollout's devices, one by one."""
