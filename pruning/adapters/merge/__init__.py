"""Merge methods, one per file: `merge(parts, params, seed)` of one linear."""
