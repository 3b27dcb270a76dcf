"""Eclipse hawkBit's DDI v1 API as a second transport on the same desired state."""
