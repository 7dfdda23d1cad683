"""One file per schedule: how many cuts lead from the dense base to the target, and how deep."""
