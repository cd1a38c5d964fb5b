"""Two prompt sets, split into train, validation and test without overlap."""
