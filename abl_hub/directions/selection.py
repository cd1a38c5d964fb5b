"""The candidate that mediates the behaviour (Arditi et al. 2024, section 2.3)."""
