"""The algebra of an `Edit` and its three faithful forms: hooks, checkpoint, delta."""
