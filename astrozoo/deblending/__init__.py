"""What ``astrozoo run deblend`` does beyond the inference: images and fluxes of sources, pictures."""
