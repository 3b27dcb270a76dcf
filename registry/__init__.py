"""What exists: models, versions, variants, devices, users and the audit trail; their HTTP routes and commands."""
