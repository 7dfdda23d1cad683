"""Training for recovery: one loop that all trained methods share, and what it is fed with."""
