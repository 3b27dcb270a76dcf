"""What follows from the evidence: e-values and their limits, differences of answers, and the next step. Pure."""
