"""The whole flow on one page: extract, apply, evaluate, card, push."""
