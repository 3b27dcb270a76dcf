"""The data image: new weights for a microcontroller without new firmware, signed, in two banks."""
