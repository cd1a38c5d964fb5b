"""Streamed means of activations."""
