"""Refusal, non-answers, KL, perplexity, intervals, the verdict. Blind to directions and edits."""
