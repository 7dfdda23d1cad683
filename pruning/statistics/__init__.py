"""One file per statistic of the calibration pass; `pruning.stats` runs the pass and stores them."""
