"""A simulated fleet: the agent's own logic, many times over, on a light transport and one clock (docs/simulator.md)."""
