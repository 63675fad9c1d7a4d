"""Models of the zoo, one file each."""
