"""The micro world's decoder: 64 codes to a picture of 128 x 128 pixels.

Each background code has a layer as large as the picture, and a token of that code is a window on it, so skies
and hills continue across tokens. An object code is a quarter of a sprite with an alpha. The codes do not say what is
behind an object: the decoder guesses it from the neighbours, as a learned decoder would.

Painting is in numpy: sRGB in [0, 1], premultiplied where there is an alpha. Tables are painted once.
B images, N tokens, H W pixels, P corners of a polygon, Q pixels of a patch's side.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.micro import world
from htgrpo_ext.micro.world import GRID, HORIZON, NUM_IMAGE_TOKENS, NUM_OBJECT_CODES, OBJECT_SIDE

PATCH = 16  # pixels per token side
SIDE = GRID * PATCH
FINE = 4  # each pixel is the mean of FINE x FINE painted ones
CLEAR, HATCHED = NUM_OBJECT_CODES, NUM_OBJECT_CODES + 1  # overlays of background codes and of masked tokens
# The plain patch of each row of tokens, which is assumed to be behind an object.
PLAIN_OF_ROW = 2 * [world.SKY_HIGH] + 2 * [world.SKY_LOW] + [world.GROUND_FAR] + 3 * [world.GROUND_NEAR]

OBJECT_COLORS = {  # fill, outline, texture
    "red": ("#e5484d", "#8c1d27", "#ffe3dc"),
    "yellow": ("#fec629", "#9a6400", "#fffbe3"),
    "green": ("#35a75a", "#12592f", "#dcf7dc"),
    "blue": ("#3b82e6", "#173f8f", "#dcecff"),
    "purple": ("#9a55cf", "#4f1f7d", "#f3e0ff"),
}
PALETTES = {  # zenith, middle sky, horizon, ridge, far ground, near ground
    ("meadow", "noon"): ("#5fb4ec", "#93d0f4", "#d3eefa", "#5d9f63", "#8cc46a", "#a5d37c"),
    ("meadow", "dusk"): ("#4a4a86", "#a56d96", "#f3b08c", "#39564f", "#4d6f4e", "#5f7f55"),
    ("beach", "noon"): ("#4fc0ea", "#88d8f2", "#cdf1f7", "#2fa3bd", "#f3e2b3", "#f8ebc6"),
    ("beach", "dusk"): ("#5b4a8c", "#c2739a", "#ffb98a", "#4a6590", "#bb9488", "#cda795"),
    ("desert", "noon"): ("#74bfe6", "#a9d9ee", "#f6ead0", "#cf8350", "#e6ac68", "#f0c283"),
    ("desert", "dusk"): ("#5a3f78", "#b45f7b", "#f79d64", "#7a3f46", "#a3614c", "#b97757"),
    ("snow", "noon"): ("#86bfe8", "#b3d8f1", "#e2f1fa", "#8fb1d0", "#e4eff8", "#f5faff"),
    ("snow", "dusk"): ("#3f4f86", "#7f7fb4", "#e3b3c0", "#5f6c9c", "#a3add2", "#b9c2e0"),
    ("sea", "noon"): ("#68b6ea", "#9ed2f3", "#dcf0f8", "#2c7fae", "#3592c0", "#4bafd0"),
    ("sea", "dusk"): ("#48427c", "#a8688f", "#f5a98c", "#46497f", "#3f5487", "#4c6a97"),
}
# DETAIL_A and DETAIL_B of each scene. A stroke is a kind, a color, numbers in pixels of the patch. A `dot` has a
# center and a radius, a `fill` its corners, a `pen` (thin) and a `bar` (thick) the points they pass through.
CLOUD = "dot #ffffff 8 10.5 3.5; dot #ffffff 14.5 8 5.3; dot #ffffff 21.5 9.2 4.4; bar #ffffff 5.5 12.2 26.5 12.2"
DETAILS = {
    "meadow": (
        "pen #2f6b2f 8 8 8 15; pen #2f6b2f 8 13.5 11 11.5; dot #ffffff 8 3.8 2; dot #ffffff 10.9 5.9 2;"
        "dot #ffffff 9.8 9.2 2; dot #ffffff 6.2 9.2 2; dot #ffffff 5.1 5.9 2; dot #ffb938 8 6.8 1.9",
        "bar #f6ead2 6.5 9 6.5 13; bar #f6ead2 11.8 12 11.8 13.4;"
        "fill #a8572f 1.5 9 2.2 6 4.2 4 6.5 3.4 8.8 4 10.8 6 11.5 9;"
        "fill #a8572f 8.8 12 9.6 10 11.8 9.2 14 10 14.8 12; dot #fbe9cf 4.6 7 .9; dot #fbe9cf 7.8 5.8 .9",
    ),
    "beach": (
        "fill #ef8f7c 8 13.5 2.3 8.5 3.3 5.4 5.8 3.6 8 3.1 10.2 3.6 12.7 5.4 13.7 8.5; pen #b9544c 8 12.5 4.2 6.8;"
        "pen #b9544c 8 12.5 6.7 4.8; pen #b9544c 8 12.5 9.3 4.8; pen #b9544c 8 12.5 11.8 6.8",
        "pen #8a5a34 6.5 15 7 11 8.4 5; pen #8a5a34 7 15 7.5 11 8.8 5; fill #2f8f5b 8.6 5.6 4.5 2.8 1 6.5 4.8 4.9;"
        "fill #2f8f5b 8.6 5.6 6.5 1.2 3 1 5.6 2.8; fill #2f8f5b 8.6 5.6 10.6 1.2 14 1.8 11.4 2.9;"
        "fill #2f8f5b 8.6 5.6 12.4 3.2 15 8 11.8 5.6; fill #23784a 8.6 5.2 6.6 6.4 5 10.5 7.8 7.5",
    ),
    "desert": (
        "bar #3f7f4c 8 3 8 14; bar #3f7f4c 3.7 5.5 3.7 9 8 9; bar #3f7f4c 12.3 4 12.3 7.5 8 7.5",
        "fill #80604f 1.5 13.5 2.5 9 6 6.5 9.3 8 11 13.5; fill #a5836f 8.3 13.5 9.3 10.6 12 9.6 14.5 13.5;"
        "fill #9a7864 2.5 9 6 6.5 9.3 8 5.5 9.6",
    ),
    "snow": (
        "bar #6b4a3a 8 12 8 14; fill #2f6f62 8 6.5 2 12.8 14 12.8; fill #37806f 8 3.5 3 9 13 9;"
        "fill #2f6f62 8 .5 4.4 5.4 11.6 5.4",
        "dot #7d93b5 8 10.8 4.6; dot #ffffff 8 10.8 4; dot #7d93b5 8 5 3.5; dot #ffffff 8 5 2.9;"
        "fill #f08a3c 8 4.6 12.6 5.8 8 6.4; dot #2a3348 7 4.1 .7; dot #2a3348 9.4 4.1 .7; bar #c8484c 5.9 7.6 10.1 7.6",
    ),
    "sea": (
        "pen #ffffff 1.5 7.5 4 5.6 6 5.4 8 7 10 7.4 12 5.6 14.5 5.4; pen #ffffff 4 12 6 10.7 8 11.6 10 12 12 10.7",
        "fill #8f4632 2 11 14 11 11.8 14.3 4.2 14.3; fill #ffffff 8.5 1.2 8.5 10.2 13.8 10.2;"
        "fill #ffdcae 7.4 3 7.4 10.2 2.8 10.2",
    ),
}
GROUND = {  # ripples: strength, period in pixels; grain: strength, height in pixels
    "meadow": (0.010, 12, 0.030, 3),
    "beach": (0.008, 9, 0.016, 1),
    "desert": (0.022, 8, 0.008, 1),
    "snow": (0.012, 16, 0.006, 1),
    "sea": (0.035, 8, 0.0, 1),
}


def _rgb(color: str) -> np.ndarray:
    return np.array(ImageColor.getrgb(color), dtype=np.float32) / 255


def _gradient(stops: Sequence[str], place_HW: np.ndarray) -> np.ndarray:
    """Colors [H, W, 3] at places in [0, 1] between equally spaced stops."""
    at = np.linspace(0, 1, len(stops))
    channels = np.stack([_rgb(stop) for stop in stops], axis=1)
    return np.stack([np.interp(place_HW, at, channel) for channel in channels], axis=-1).astype(np.float32)


def _pixels(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """y, x [height FINE, width FINE] of the painted points, in pixels."""
    y, x = np.mgrid[: height * FINE, : width * FINE].astype(np.float32)
    return (y + 0.5) / FINE, (x + 0.5) / FINE


def _coarse(fine_HWC: np.ndarray) -> np.ndarray:
    """The mean over FINE x FINE."""
    h, w, c = fine_HWC.shape
    return fine_HWC.reshape(h // FINE, FINE, w // FINE, FINE, c).mean(axis=(1, 3))


# --- objects ---------------------------------------------------------------------------------------------------


def _outline(shape: str) -> tuple[np.ndarray, float]:
    """Corners [P, 2] around (0, 0), in pixels, y down, and by how much to grow them into round ones."""
    turn = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    if shape == "circle":
        return np.stack([np.sin(turn), np.cos(turn)], 1) * 13.4, 0.3
    if shape == "heart":
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([16 * np.sin(turn) ** 3 * 0.83, -y * 0.85 - 1.2], 1), 0.6
    if shape == "star":
        radius, turn = np.tile([13.6, 6.2], 5), np.arange(10) * math.pi / 5
        return np.stack([radius * np.sin(turn), 1.2 - radius * np.cos(turn)], 1), 1.2
    corners = {
        "square": ((-10, -10), (10, -10), (10, 10), (-10, 10)),
        "triangle": ((0, -10.5), (11.8, 10), (-11.8, 10)),
        "diamond": ((0, -12.6), (10.4, 0), (0, 12.6), (-10.4, 0)),
    }
    return np.array(corners[shape]), 2 if shape == "square" else 1.5


def _signed_distance(corners_P2: np.ndarray, y_HW: np.ndarray, x_HW: np.ndarray) -> np.ndarray:
    """Distance [H, W] to a polygon's edge, negative inside (crossings of a ray are odd)."""
    nearest, inside = np.full_like(x_HW, np.inf), np.zeros_like(x_HW, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners_P2, np.roll(corners_P2, -1, axis=0), strict=True):
        dx, dy = bx - ax, by - ay
        along = np.clip(((x_HW - ax) * dx + (y_HW - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (x_HW - ax - along * dx) ** 2 + (y_HW - ay - along * dy) ** 2)
        if dy:
            inside ^= ((ay > y_HW) != (by > y_HW)) & (x_HW < ax + (y_HW - ay) / dy * dx)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def _object_sprites(shape: str) -> np.ndarray:
    """Every texture and color of a shape: premultiplied [3, 5, 32, 32, 4]."""
    side = OBJECT_SIDE * PATCH
    y, x = (pixels - side / 2 for pixels in _pixels(side, side))
    corners, grow = _outline(shape)
    distance = _signed_distance(corners, y, x) - grow
    stripes = np.abs((x + y) / math.sqrt(2) % 7 - 3.5) < 1.6
    row = np.floor(y / 6 + 0.5)
    dots = np.hypot((x + 3.5 * (row % 2)) % 7 - 3.5, y - 6 * row) < 2.0
    inked = {"plain": np.zeros_like(dots), "striped": stripes, "dotted": dots}
    sprites = []
    for texture in world.TEXTURES:
        for color in world.COLORS:
            fill, line, ink = OBJECT_COLORS[color]
            body = np.where(inked[texture][..., None], _rgb(ink), _rgb(fill))
            body = body + 0.16 * np.clip(-y / 14, 0, 1)[..., None] * (1 - body)  # light from above
            body = body * (1 - 0.20 * np.clip(y / 14, 0, 1)[..., None])
            painted = np.where(distance[..., None] < -1.3, body, _rgb(line))
            alpha = np.where(distance < 0, 1, 0.8 * np.clip(1.9 - distance, 0, 1))[..., None]
            painted = np.where(distance[..., None] < 0, painted, 1)  # a white halo
            sprites.append(_coarse(np.concatenate([painted * alpha, alpha], axis=-1)))
    return np.reshape(sprites, (len(world.TEXTURES), len(world.COLORS), side, side, 4))


# --- backgrounds -----------------------------------------------------------------------------------------------


def _draw_strokes(strokes: str, width: int, tint: np.ndarray) -> np.ndarray:
    """A small thing, premultiplied [16, width, 4]."""
    zoom = 8
    image = Image.new("RGBA", (width * zoom, PATCH * zoom))
    draw = ImageDraw.Draw(image)
    for stroke in strokes.split(";"):
        kind, color, *numbers = stroke.split()
        points = [float(number) * zoom for number in numbers]
        if kind == "dot":
            draw.circle(points[:2], points[2], color)
        elif kind == "fill":
            draw.polygon(points, color)
        else:
            thick = zoom * {"pen": 1.1, "bar": 2.8}[kind]
            draw.line(points, color, round(thick))
            for x, y in zip(points[::2], points[1::2], strict=True):
                draw.circle((x, y), thick / 2, color)
    rgba = np.asarray(image.resize((width, PATCH), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    return np.concatenate([rgba[..., :3] * tint * rgba[..., 3:], rgba[..., 3:]], axis=-1)


def _ridges(scene: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels below the sky at which the distance (hills, sea) begins, and at which the ground begins."""
    turn = 2 * math.pi * x / SIDE
    flat, wave = 0 * x, np.sin(turn)
    return {
        "meadow": (5.5 + 2.6 * np.sin(2 * turn) + np.sin(5 * turn + 1), 11 + 1.5 * np.sin(3 * turn + 2)),
        "beach": (flat + 5, 11.5 + np.sin(3 * turn)),
        "desert": (np.clip(6.5 + 9 * np.sin(3 * turn + 0.6) + 3 * wave, 3, 9.5), 11 + 1.5 * np.sin(2 * turn)),
        "snow": (2 + 7 * np.abs((x / 23) % 2 - 1) + 2 * np.abs((x / 9) % 2 - 1), 12 + np.sin(2 * turn + 1)),
        "sea": (flat + 5, flat + 11),
    }[scene]


def _layers(scene: str, light: str) -> np.ndarray:
    """The layer of each background code of a scene under a light: [8, 128, 128, 3]."""
    zenith, middle, horizon, ridge, far, near = PALETTES[scene, light]
    tint = np.array((1, 1, 1) if light == "noon" else (0.84, 0.74, 0.86), dtype=np.float32)
    y, x = _pixels(HORIZON * PATCH, SIDE)
    sky = _coarse(_gradient((zenith, middle, horizon), y / (HORIZON * PATCH)))
    y, x = _pixels(PATCH, SIDE)
    distance_y, ground_y = (edge[..., None] for edge in _ridges(scene, x))
    y = y[..., None]
    hills = np.where(y < distance_y, _rgb(horizon), _rgb(ridge) + 0.10 * (1 - y / PATCH))
    if scene == "snow":  # white peaks
        hills = np.where((y > distance_y) & (y < 5.5 + np.sin(x)[..., None]), _rgb(near), hills)
    foam = 0.6 * (scene == "beach") * (np.abs(y - ground_y) < 0.8) * (1 - hills)
    far_strip = _coarse(np.where(y < ground_y, hills, _rgb(far)) + foam)
    height = (GRID - HORIZON - 1) * PATCH
    y, x = _pixels(height, SIDE)
    ripple, period, grain, tall = GROUND[scene]
    near_strip = _coarse(_gradient((far, near), y / height))
    wobble = y + 1.5 * np.sin(x * 2 * math.pi / 32) + 0.8 * np.sin(x * 2 * math.pi / 12.8 + y / 5)
    near_strip += _coarse(ripple * np.sin(2 * math.pi * wobble / period)[..., None])
    grains = np.random.default_rng(0).standard_normal((height // tall, SIDE, 1)).repeat(tall, axis=0)
    near_strip += grain * grains
    plain = {
        world.SKY_HIGH: sky[: 2 * PATCH],
        world.SKY_LOW: sky[2 * PATCH :],
        world.GROUND_FAR: far_strip,
        world.GROUND_NEAR: np.roll(near_strip, (HORIZON + 1) * PATCH, axis=0),
    }
    layers = {patch: np.resize(strip, (SIDE, SIDE, 3)) for patch, strip in plain.items()}
    native = np.concatenate([layers[p][r * PATCH : (r + 1) * PATCH] for r, p in enumerate(PLAIN_OF_ROW)])
    cloud = _draw_strokes(CLOUD, 2 * PATCH, 0.55 * tint + 0.45 * _rgb(horizon))
    small = {world.CLOUD_LEFT: cloud[:, :PATCH], world.CLOUD_RIGHT: cloud[:, PATCH:]}
    for patch, strokes in zip((world.DETAIL_A, world.DETAIL_B), DETAILS[scene], strict=True):
        small[patch] = _draw_strokes(strokes, PATCH, tint)
    for patch, sprite in small.items():
        everywhere = np.tile(sprite, (GRID, GRID, 1))
        layers[patch] = native * (1 - everywhere[..., 3:]) + everywhere[..., :3]
    return np.stack([layers[patch] for patch in range(world.BACKGROUND_PATCHES)]).clip(0, 1)


# --- codes to pixels -------------------------------------------------------------------------------------------


@cache
def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """(background [N, 80, 3, Q, Q], overlay [362, 3, Q, Q] premultiplied, its alpha [362, 1, Q, Q]), in [-1, 1]."""
    layers = np.concatenate([_layers(scene, light) for scene in world.SCENES for light in world.LIGHTS])
    windows = layers.reshape(-1, GRID, PATCH, GRID, PATCH, 3).transpose(1, 3, 0, 5, 2, 4)
    background = windows.reshape(NUM_IMAGE_TOKENS, -1, 3, PATCH, PATCH)
    sprites = np.stack([_object_sprites(shape) for shape in world.SHAPES], axis=1)  # [texture, shape, color, ...]
    quarters = sprites.reshape(-1, OBJECT_SIDE, PATCH, OBJECT_SIDE, PATCH, 4).transpose(0, 1, 3, 5, 2, 4)
    y, x = np.mgrid[:PATCH, :PATCH]
    hatched = np.stack([np.where((x + y) % 8 < 2, 0.66, 0.74)] * 3 + [np.ones((PATCH, PATCH))])
    overlay = np.concatenate([quarters.reshape(-1, 4, PATCH, PATCH), np.zeros((1, 4, PATCH, PATCH)), hatched[None]])
    rgb, alpha = overlay[:, :3], overlay[:, 3:]
    tables = (2 * background - 1, 2 * rgb - alpha, alpha)
    plain, over, opacity = (torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32)) for table in tables)
    return plain, over, opacity


def all_patches(scene_light: int) -> Tensor:
    """The picture of each code at each place, with objects in front of this scene under this light (0..9).

    Returns float32 [N, 440, 3, Q, Q] in [-1, 1], on the CPU.
    """
    background, overlay, alpha = _tables()
    plain_N = scene_light * world.BACKGROUND_PATCHES + torch.tensor(PLAIN_OF_ROW).repeat_interleave(GRID)
    behind = background[torch.arange(NUM_IMAGE_TOKENS), plain_N][:, None]
    objects = behind * (1 - alpha[:NUM_OBJECT_CODES]) + overlay[:NUM_OBJECT_CODES]
    return torch.cat([objects, background], dim=1).clamp(-1, 1)


def decode_codes(codes_BN: Tensor) -> Tensor:
    """Draw images; masked tokens are hatched grey.

    codes_BN  int64 [B, 64], row-major, in 0..439 or MASK
    Returns   float32 [B, 3, 128, 128] in [-1, 1]
    Raises    ValueError for any other code
    """
    if ((codes_BN < 0) & (codes_BN != MASK) | (codes_BN >= world.CODEBOOK_SIZE)).any():
        raise ValueError(f"codes must be in 0..{world.CODEBOOK_SIZE - 1}, or {MASK} where masked")
    background, overlay, alpha = (table.to(codes_BN.device) for table in _tables())
    place_N = torch.arange(NUM_IMAGE_TOKENS, device=codes_BN.device)
    plain_N = torch.tensor(PLAIN_OF_ROW, device=codes_BN.device)[place_N // GRID]
    is_background_BN = codes_BN >= NUM_OBJECT_CODES
    own_BN = codes_BN - NUM_OBJECT_CODES
    # Behind objects: the scene and light that most background tokens show, the first of several (none: the first).
    scene_light = torch.arange(len(PALETTES), device=codes_BN.device)
    shows_BNS = is_background_BN[..., None] & (own_BN[..., None] // world.BACKGROUND_PATCHES == scene_light)
    guess_B1 = shows_BNS.sum(dim=1).argmax(dim=1, keepdim=True)
    behind_BN = torch.where(is_background_BN, own_BN, guess_B1 * world.BACKGROUND_PATCHES + plain_N)
    over_BN = codes_BN.masked_fill(is_background_BN, CLEAR).masked_fill(codes_BN == MASK, HATCHED)
    patches = background[place_N, behind_BN] * (1 - alpha[over_BN]) + overlay[over_BN]  # [B, N, 3, Q, Q]
    patches = patches.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(len(codes_BN), 3, SIDE, SIDE).clamp(-1, 1)
