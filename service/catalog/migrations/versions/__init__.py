"""One file for each version of the tables; what is released never changes."""
