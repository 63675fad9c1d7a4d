"""What ``astrozoo run strong_lens`` does beyond the inference: sources of pixels, pictures, the report."""
