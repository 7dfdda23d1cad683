"""One file per initialisation: with which factors the training of an adapter begins."""
