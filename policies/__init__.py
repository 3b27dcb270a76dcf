"""What is allowed, as data and pure functions: compatibility, quality gates, approval, rollout plans, roles."""
