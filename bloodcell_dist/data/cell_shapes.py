"""The shapes of drawn blood cells: outlines, nuclei and granules as masks.

Lengths are in pixels of a 96-pixel picture. Masks are float32 [S, S] in [0, 1], antialiased by drawing at
twice the size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FRAME = 96  # the picture size that all lengths refer to
_OVERSAMPLING = 2
_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_COSINES, _SINES = np.cos(_ANGLES), np.sin(_ANGLES)
_FROM_ZERO = np.abs((_ANGLES + np.pi) % (2 * np.pi) - np.pi)
_WAVES = np.arange(2, 6)[:, None]  # waves per turn that make an outline irregular


@dataclass(frozen=True)
class Cell:
    """Where a cell lies: centre and mean radius in frame pixels, turned by `angle` radians."""

    x: float
    y: float
    radius: float
    angle: float


class Mask:
    """A grey canvas in frame pixels; what is drawn later lies over what was drawn before."""

    def __init__(self, image_size: int) -> None:
        self._scale = _OVERSAMPLING * image_size / FRAME
        side = _OVERSAMPLING * image_size
        self._canvas = Image.new("L", (side, side))
        self._draw = ImageDraw.Draw(self._canvas)

    def shape(self, points: np.ndarray, value: float = 1.0) -> None:
        """Fill the polygon of points [K, 2]."""
        self._draw.polygon((points * self._scale).ravel().tolist(), fill=round(255 * value))

    def disc(self, x: float, y: float, radius: float, value: float = 1.0) -> None:
        x, y, radius = x * self._scale, y * self._scale, radius * self._scale
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=round(255 * value))

    def line(self, points: np.ndarray, width: float) -> None:
        self._draw.line((points * self._scale).ravel().tolist(), fill=255, width=max(1, round(width * self._scale)))

    def pixels(self, blur: float = 0.0) -> np.ndarray:
        """float32 [S, S] in [0, 1], its edges softened by `blur` frame pixels."""
        canvas = self._canvas.reduce(_OVERSAMPLING)
        if blur:
            canvas = canvas.filter(ImageFilter.BoxBlur(blur * self._scale / _OVERSAMPLING))
        return np.asarray(canvas, np.float32) / 255


def outline(cell: Cell, rng: np.random.Generator, wobble: float, stretch: float = 1.0, dent: float = 0.0) -> np.ndarray:
    """A closed irregular outline, float64 [K, 2].

    wobble: size of the irregularities relative to the radius. stretch: long to short axis. dent: depth of one
    notch, relative to the radius, at `cell.angle`.
    """
    amplitude = rng.normal(0, wobble, (4, 1)) / (_WAVES - 1)
    radii = 1 + (amplitude * np.cos(_WAVES * _ANGLES + rng.uniform(0, 2 * np.pi, (4, 1)))).sum(0)
    radii = cell.radius * (radii - dent * np.exp(-((_FROM_ZERO / 0.55) ** 2)))
    flat = np.stack([_COSINES * radii / np.sqrt(stretch), _SINES * radii * np.sqrt(stretch)])
    return (_turn(cell.angle) @ flat).T + np.array([cell.x, cell.y])


def scatter(cell: Cell, rng: np.random.Generator, count: int, reach: float) -> np.ndarray:
    """Points [count, 2], even over the disc of `reach` radii."""
    distance = cell.radius * reach * np.sqrt(rng.uniform(0, 1, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.stack([cell.x + distance * np.cos(angle), cell.y + distance * np.sin(angle)], axis=1)


Nucleus = Callable[[Mask, Cell, np.random.Generator], None]
"""Draws the nucleus of the given cell on a mask."""


def round_nucleus(low: float, high: float, wobble: float, off_centre: float) -> Nucleus:
    """One round nucleus of `low` to `high` cell radii, moved by up to `off_centre` of the free room."""

    def draw(mask: Mask, cell: Cell, rng: np.random.Generator) -> None:
        size = rng.uniform(low, high)
        room = cell.radius * (1 - size) * rng.uniform(0, off_centre)
        inner = Cell(
            cell.x + room * np.cos(cell.angle),
            cell.y + room * np.sin(cell.angle),
            cell.radius * size,
            cell.angle,
        )
        mask.shape(outline(inner, rng, wobble, rng.uniform(1, 1.25)))

    return draw


def dented_nucleus(low: float, high: float, dent_low: float, dent_high: float) -> Nucleus:
    """One oval nucleus with a notch: a bean for a small dent, a kidney or horseshoe for a deep one."""

    def draw(mask: Mask, cell: Cell, rng: np.random.Generator) -> None:
        size, shift = rng.uniform(low, high), rng.uniform(0, 0.2) * cell.radius
        inner = Cell(
            cell.x - shift * np.cos(cell.angle),
            cell.y - shift * np.sin(cell.angle),
            cell.radius * size,
            cell.angle,
        )
        mask.shape(outline(inner, rng, 0.06, rng.uniform(1.05, 1.45), rng.uniform(dent_low, dent_high)))

    return draw


def lobed_nucleus(lobes: tuple[int, ...], size: tuple[float, float], band: float = 0.0) -> Nucleus:
    """Lobes of `size` cell radii on an arc, joined by bridges; with probability `band` one thick unbroken arc."""

    def draw(mask: Mask, cell: Cell, rng: np.random.Generator) -> None:
        count = int(rng.choice(lobes))
        arc = rng.uniform(0.45, 0.6) * cell.radius
        angles = cell.angle + np.cumsum(rng.uniform(0.9, 1.25, count)) * (2.6 if count == 2 else 4.4 / count)
        radii = arc * rng.uniform(0.8, 1.15, count)
        middles = np.stack([cell.x + radii * np.cos(angles), cell.y + radii * np.sin(angles)], axis=1)
        thick = rng.uniform(0) < band
        mask.line(_arc(middles, cell), (0.36 if thick else rng.uniform(0.08, 0.22)) * cell.radius)
        for x, y in middles:
            radius = cell.radius * (0.2 if thick else rng.uniform(*size))
            mask.shape(outline(Cell(x, y, radius, rng.uniform(0, 6)), rng, 0.08, rng.uniform(1, 1.4)))

    return draw


def _arc(middles: np.ndarray, cell: Cell) -> np.ndarray:
    """The way through the lobes, bent away from the chord, as chromatin bridges run."""
    between = (middles[:-1] + middles[1:]) / 2
    bent = between + 0.25 * (between - (cell.x, cell.y))
    way = np.empty((2 * len(middles) - 1, 2))
    way[0::2], way[1::2] = middles, bent
    return way


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
