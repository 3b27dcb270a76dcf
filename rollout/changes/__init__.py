"""What changes a rollout: drafts, approvals, starts and stops, each one transaction by the table of states."""
