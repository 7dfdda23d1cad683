"""Coupled channels of any traced torch model: found by propagation, removed together."""
