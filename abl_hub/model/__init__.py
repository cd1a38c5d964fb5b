"""Loading, chat templates, batches, generation; the residual stream and what writes to it."""
