import pytest
from astropy import units

from astrozoo.data.units import pixel_unit, scale_of_unit
from astrozoo.errors import InputError


@pytest.mark.parametrize(
    ("text", "detector", "per_second"),
    [
        ("ELECTRONS/S", "electron", True),
        ("ELECTRONS", "electron", False),
        ("e-/s", "electron", True),
        ("e- s-1", "electron", True),
        ("electron/s/pixel", "electron", True),
        ("counts", "adu", False),
        ("COUNTS/S", "adu", True),
        ("cps", "adu", True),
        ("DN", "adu", False),
        ("DNs", "adu", False),
        ("DN s^-1", "adu", True),
        ("counts per second", "adu", True),
        ("[ADU]", "adu", False),
    ],
)
def test_everyday_units_of_detectors(text, detector, per_second):
    scale = scale_of_unit(pixel_unit(text), pixel_area=0.04)
    assert (scale.detector, scale.per_second, scale.nanomaggies) == (detector, per_second, None)


@pytest.mark.parametrize(
    ("text", "nanomaggies"),
    [
        ("nMgy", 1),
        ("nanomaggies", 1),
        ("maggies", 1e9),
        ("uJy", 1 / 3.631),
        ("nJy", 1e-3 / 3.631),
        ("Jy/pixel", 1e6 / 3.631),
        ("MJY/SR", 1e6 * 0.04 * (units.arcsec**2).to(units.sr) * 1e6 / 3.631),
        ("erg/s/cm2/A", (1 * units.Unit("erg / (s cm2 Angstrom)")).to_value(
            units.Jy, units.spectral_density(800 * units.nm)) * 1e6 / 3.631),
    ],
)  # fmt: skip
def test_units_of_flux(text, nanomaggies):
    scale = scale_of_unit(pixel_unit(text), pixel_area=0.04, wavelength=800)
    assert scale.nanomaggies == pytest.approx(nanomaggies, rel=1e-3)
    assert scale.detector == ""


@pytest.mark.parametrize("text", ["", "furlong", "km/s", "MJY", "Jy/beam", "pixel", "none"])
def test_what_is_no_unit_of_pixels_is_refused(text):
    with pytest.raises(InputError, match="BUNIT: got"):
        scale_of_unit(pixel_unit(text, "BUNIT"), pixel_area=0.04, what="BUNIT")


def test_fluxes_per_wavelength_need_the_wavelength():
    with pytest.raises(InputError, match="wavelength"):
        scale_of_unit(pixel_unit("erg/s/cm2/A"), pixel_area=0.04)
