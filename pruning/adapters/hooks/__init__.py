"""One file per hook: what happens around the steps of a training."""
