"""Models run over a whole area of sky: detection, partition, scheduling and the merged catalogue."""
