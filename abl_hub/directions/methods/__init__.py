"""One file a method, one registry."""
