"""Prompts to means to candidates to the selected `Direction`; one file a method, one registry."""
