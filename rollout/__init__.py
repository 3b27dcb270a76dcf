"""Who gets a model, when, and when to stop: from an approved rollout to a fleet on the new stable version, or back."""
