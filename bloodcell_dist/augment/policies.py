"""The named augmentation policies: `none`, `light`, `seed` and `robust`."""

from bloodcell_dist.augment import stock
from bloodcell_dist.augment.affine import RandomAffine
from bloodcell_dist.augment.base import StatelessAugmentation
from bloodcell_dist.augment.camera import RandomIllumination, RandomNoise
from bloodcell_dist.augment.colour import RandomBrightness, RandomContrast, RandomHue, RandomSaturation
from bloodcell_dist.augment.erase import GridMask
from bloodcell_dist.augment.focus import RandomGaussianBlur, RandomSharpness
from bloodcell_dist.augment.fourier import FourierMix
from bloodcell_dist.augment.fused import FusedPolicy
from bloodcell_dist.augment.jpeg import RandomJpegQuality
from bloodcell_dist.augment.mixing import BatchChoice, CutMix, MixUp
from bloodcell_dist.augment.rand_augment import RandAugment
from bloodcell_dist.augment.shared_warp import SharedWarp
from bloodcell_dist.augment.stain import RandomStain
from bloodcell_dist.augment.stock import StockPolicy
from bloodcell_dist.errors import UserError

POLICY_NAMES = ("none", "light", "seed", "robust")
ENGINES = ("fused", "kerascv")
DEFAULT_MAGNITUDE = 0.5

Policy = FusedPolicy | StockPolicy


def build_policy(
    name: str,
    *,
    engine: str = "fused",
    image_size: int,
    num_classes: int,
    magnitude: float | None = None,
) -> Policy:
    """Make a policy: a callable (images, labels, seed, step, positions) -> (images, labels).

    Args:
        name: one of `POLICY_NAMES`.
        engine: "fused" (ours: stateless, compilable) or "kerascv" (stock layers, for reference).
        image_size: height and width of the pictures.
        num_classes: width of the labels.
        magnitude: 0 to 1, default 0.5, which is the strength that the recipes below give; ranges grow in proportion.
            Flips and turns do not depend on it: a cell on a smear has no up.

    Raises:
        UserError: unknown name or engine, or a magnitude outside [0, 1].
    """
    if name not in POLICY_NAMES:
        raise UserError(f"augment.policy={name}: there is no such policy; use one of {', '.join(POLICY_NAMES)}")
    if engine not in ENGINES:
        raise UserError(f"augment.engine={engine}: there is no such engine; use one of {', '.join(ENGINES)}")
    magnitude = DEFAULT_MAGNITUDE if magnitude is None else magnitude
    if not 0.0 <= magnitude <= 1.0:
        raise UserError(f"augment.magnitude={magnitude}: expected a number from 0 to 1 (default 0.5)")
    if engine == "kerascv":
        return StockPolicy(name, stock.layers(name, magnitude))
    layers = {
        "none": lambda: (),
        "light": lambda: light_layers(magnitude),
        "seed": lambda: seed_layers(magnitude, image_size),
        "robust": lambda: robust_layers(magnitude),
    }
    return FusedPolicy(name, layers[name](), image_size, num_classes)


def light_layers(magnitude: float) -> tuple[StatelessAugmentation, ...]:
    """Changes that leave a cell plausible: any orientation, small warps, mild differences of stain and exposure."""
    strength = magnitude / DEFAULT_MAGNITUDE
    colours = (
        RandomBrightness(0.08 * strength),
        RandomContrast(0.1 * strength),
        RandomSaturation((0.5 - 0.05 * strength, 0.5 + 0.05 * strength)),
        RandomHue(0.03 * strength),
    )
    return (SharedWarp([*colours, _plausible_moves(strength)]),)


def _plausible_moves(strength: float) -> RandomAffine:
    return RandomAffine(
        flip_horizontal=0.5,
        flip_vertical=0.5,
        rotation=0.5,
        shear_x=0.05 * strength,
        shear_y=0.05 * strength,
        zoom=0.1 * strength,
        translate_x=0.05 * strength,
        translate_y=0.05 * strength,
    )


def seed_layers(magnitude: float, image_size: int) -> tuple[StatelessAugmentation, ...]:
    """What the original did: CutMix, MixUp, FourierMix or nothing (25 % of the batches each), then RandAugment with
    three operations, then six further layers. It does not name the six; its figure shows holes in a grid and strong
    colour change. Chosen here:

    1. flips: a cell on a smear has no handedness;
    2. rotation by any angle: nor has it an up;
    3. zoom: magnification differs between microscopes, but size tells a platelet, so by 15 % at most;
    4. saturation: stains differ in strength, and RandAugment only ever weakens colour;
    5. hue: stains and white balance differ in tint, which RandAugment never touches; the figure's colours change so;
    6. GridMask: the holes in the figure.

    RandAugment's moves and the first three share one resampling.
    """
    strength = magnitude / DEFAULT_MAGNITUDE
    fourier_mix = FourierMix(cutoff=min(8, (image_size - 1) // 2))  # what pictures below 17 pixels can show
    moves = RandomAffine(flip_horizontal=0.5, flip_vertical=0.5, rotation=0.5, zoom=0.15 * strength)
    colours = (RandomSaturation((0.5 - 0.2 * strength, 0.5 + 0.2 * strength)), RandomHue(0.2 * strength))
    rand_augment = RandAugment(augmentations_per_image=3, magnitude=magnitude)
    return (
        BatchChoice([CutMix(), MixUp(), fourier_mix]),
        SharedWarp([rand_augment, *colours, moves]),
        GridMask(ratio_factor=(0.0, min(magnitude, 0.7))),  # holes of a full period would leave nothing
    )


def robust_layers(magnitude: float) -> tuple[StatelessAugmentation, ...]:
    """What another laboratory would change in the same cell, in the order in which it comes about, each for a share of
    the pictures. Labels stay; so do shape and size of a cell, as far as `light` keeps them.

    1. stain: batches, dyes and hours since the smear was made; the main difference between laboratories;
    2. brightness and contrast: exposure and gamma of the camera;
    3. any orientation, slight zoom and shear: as `light`, magnification and crop differ a little;
    4. illumination: a lamp off centre, and a condenser that leaves the corners dark;
    5. blur: a cell out of focus, a lesser objective, or pictures scaled down; the detail of chromatin goes first;
    6. sharpness: the sharpening of cameras and scanners, and its absence;
    7. noise: sensors and exposure times;
    8. JPEG: what most archives and scanners store; its blocks and lost chroma must not pass for texture.
    """
    strength = magnitude / DEFAULT_MAGNITUDE
    before = (
        RandomStain(gain=0.2 * strength, offset=0.08 * strength, probability=0.8),
        RandomBrightness(0.1 * strength, probability=0.5),
        RandomContrast(0.15 * strength, probability=0.5),
    )
    return (
        SharedWarp([*before, _plausible_moves(strength)]),
        RandomIllumination(slope=(0.0, 0.15 * strength), vignette=(0.0, 0.08 * strength), probability=0.5),
        RandomGaussianBlur(7, (0.3 * strength, 1.0 * strength), probability=0.3),
        RandomSharpness(0.8 * strength, probability=0.3),
        RandomNoise(read=(0.0, 4.0 * strength), shot=(0.0, 4.0 * strength), probability=0.3),
        RandomJpegQuality((100.0 - 60.0 * magnitude, 100.0 - 10.0 * magnitude), probability=0.3),
    )
