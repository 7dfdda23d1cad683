"""One file per recovery method: what repairs a slim base."""
