"""Everything that devices without a network need, on a medium."""
