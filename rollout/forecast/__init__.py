"""What a rollout will cost before it starts."""
