"""How each of the eight drawn blood-cell types looks, as a table."""

from dataclasses import dataclass

from bloodcell_dist.data.cell_shapes import Nucleus, dented_nucleus, lobed_nucleus, round_nucleus

Colour = tuple[float, float, float]
_DARK_PURPLE: Colour = (62, 30, 98)


@dataclass(frozen=True)
class CellType:
    """How one type looks; lengths in pixels of a 96-pixel picture, colours (red, green, blue) 0-255.

    radius: low and high. wobble: see `outline`. nucleus: None for platelets. granules: fewest and most (most is
    exclusive). granule_opacity: low and high, in [0, 1]. vacuoles: most (exclusive).
    """

    radius: tuple[float, float]
    wobble: float
    cytoplasm: Colour
    nucleus: Nucleus | None
    nucleus_colour: Colour = (84, 48, 122)
    granule_colour: Colour = _DARK_PURPLE
    granules: tuple[int, int] = (0, 1)
    granule_radius: tuple[float, float] = (0.5, 1.0)
    granule_opacity: tuple[float, float] = (0.4, 0.9)
    granules_over_nucleus: bool = True
    vacuoles: int = 0


CELL_TYPES = {
    "basophil": CellType(
        (20, 30), 0.05, (178, 140, 178), lobed_nucleus((2, 3), (0.4, 0.55)), (98, 60, 138),
        granules=(40, 240), granule_radius=(0.8, 1.9), granule_opacity=(0.4, 1.0),
    ),
    "eosinophil": CellType(
        (25, 33), 0.03, (218, 170, 172), lobed_nucleus((2, 2, 2, 3), (0.32, 0.46)),
        granule_colour=(206, 120, 112), granules=(110, 260), granule_radius=(1.0, 1.9),
        granule_opacity=(0.2, 0.8), granules_over_nucleus=False,
    ),
    "erythroblast": CellType(
        (14, 26), 0.04, (162, 156, 184), round_nucleus(0.42, 0.78, 0.03, 0.7), (56, 30, 84),
    ),
    "ig": CellType(
        (24, 37), 0.03, (172, 152, 196), dented_nucleus(0.64, 0.86, 0.0, 0.35), (98, 58, 138),
        granules=(4, 200), granule_radius=(0.5, 1.2),
    ),
    "lymphocyte": CellType(
        (17, 29), 0.05, (142, 140, 190), round_nucleus(0.68, 0.93, 0.05, 0.9), (72, 40, 112),
        granules=(0, 8),
    ),
    "monocyte": CellType(
        (27, 38), 0.07, (166, 158, 194), dented_nucleus(0.62, 0.84, 0.12, 0.6), (104, 68, 146),
        granules=(0, 30), granule_opacity=(0.2, 0.5), vacuoles=9,
    ),
    "neutrophil": CellType(
        (23, 32), 0.03, (222, 190, 200), lobed_nucleus((2, 3, 3, 4, 4, 5), (0.22, 0.34), 0.2), (76, 42, 116),
        granule_colour=(160, 100, 150), granules=(20, 110), granule_radius=(0.4, 0.9),
        granule_opacity=(0.3, 0.7),
    ),
    "platelet": CellType(
        (6, 12), 0.1, (196, 168, 200), None, granule_colour=(110, 60, 130),
        granules=(8, 28), granule_radius=(0.6, 1.4),
    ),
}  # fmt: skip
