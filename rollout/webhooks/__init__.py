"""Webhooks: every transition of a rollout told to whoever subscribed, signed, at least once, in an outbox of the database."""
