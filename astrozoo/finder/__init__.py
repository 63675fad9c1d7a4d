"""What the command does for the lens finder: ranking, pictures, candidates."""
