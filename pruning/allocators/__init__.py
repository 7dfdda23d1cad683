"""One file per allocator: how many units leave each layer."""
