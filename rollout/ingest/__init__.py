"""What devices say, on its way into the database: checked, batched, written once, rolled up, and forgotten in time."""
