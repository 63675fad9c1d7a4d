"""What the commands do for models of galaxy images, and their pictures."""
