"""Ids to pinned commits, prompt sets, licences, commits, the local Hub. Never torch."""
