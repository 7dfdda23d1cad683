"""Compression methods, one per file: `compress(bags, params, seed, probe)` of a whole adapter."""
