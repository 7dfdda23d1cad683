"""One file per form: what of a pair of factors is trained."""
