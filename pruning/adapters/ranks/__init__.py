"""One file per way to share ranks out: how many atoms each linear is trained with."""
