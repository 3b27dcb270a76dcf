"""What is signed, by whom, and whether to believe it.

A leaf: the registry, the rollout controller and every device import it, and it imports none of them.
The rules it upholds stand in DESIGN section 4: a stolen registry or broker yields delay, never an install.
"""
