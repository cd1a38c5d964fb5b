"""The record (one schema, versioned), model cards, plots. Knows values, never loaded models."""
