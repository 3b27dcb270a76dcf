"""What devices are told: cohorts, signed documents, and their publication."""
