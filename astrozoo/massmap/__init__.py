"""What ``astrozoo run mass_map`` does beyond the inference: FITS maps, pictures, the report."""
