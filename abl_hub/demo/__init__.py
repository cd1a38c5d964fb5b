"""A harmless model that is trained on the spot, and the whole job run on it. Needs no network."""
