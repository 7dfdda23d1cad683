"""One file per criterion: which units matter least."""
