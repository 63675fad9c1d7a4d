"""A sky in boxes: their tilings, the tasks that fit them, their results on disk, and the catalogue."""
