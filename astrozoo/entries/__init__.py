"""The entries of the zoo, one file each."""

from __future__ import annotations

from astrozoo.entries import (
    celeste,
    deblend,
    denoise,
    galaxy_vae,
    latent_flow,
    lens_finder,
    mass_map,
    nbody,
    psf_vae,
    shear,
    strong_lens,
)
from astrozoo.entry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    celeste.ENTRY,
    deblend.ENTRY,
    denoise.ENTRY,
    galaxy_vae.ENTRY,
    latent_flow.ENTRY,
    lens_finder.ENTRY,
    mass_map.ENTRY,
    nbody.ENTRY,
    psf_vae.ENTRY,
    shear.ENTRY,
    strong_lens.ENTRY,
)
