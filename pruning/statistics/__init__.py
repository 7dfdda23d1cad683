"""One file per statistic; `pruning.calibration` runs the pass that collects them."""
