"""Pixels: content hash, perceptual hash, palette PNG."""

import hashlib
import io

import numpy as np
from PIL import Image
from scipy.fft import dctn

SIZE = 64
NEAR_DUPLICATE_BITS = 4


def content_hash(pixels: np.ndarray) -> str:
    """sha256 of the raw RGB bytes of pixels [H, W, 3] uint8."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def perceptual_hash(pixels: np.ndarray) -> int:
    """64 signs of the low frequencies of the grey picture, against their median."""
    grey = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, dtype=np.float64), norm="ortho")[:8, :8].ravel()  # [64]
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(
    hashes: np.ndarray, others: np.ndarray, bits: int = NEAR_DUPLICATE_BITS
) -> np.ndarray:
    """For each of hashes [N] uint64, whether any of others [M] differs in at most `bits` bits."""
    distance = np.bitwise_count(hashes[:, None] ^ others[None, :])  # [N, M]
    return (distance <= bits).any(axis=1)


def on_white(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """The picture centred on a white square, uint8 [size, size, 3]."""
    picture = image.convert("RGBA")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), (255, 255, 255, 255))
    canvas.alpha_composite(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return np.asarray(canvas.convert("RGB"))


def palette_png(pixels: np.ndarray, num_colours: int) -> bytes:
    """The picture as a PNG of at most that many colours, without dithering."""
    image = Image.fromarray(pixels).quantize(
        num_colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    return _png(image)


def grey_png(pixels: np.ndarray) -> bytes:
    """A grey picture [H, W] uint8 as a PNG."""
    return _png(Image.fromarray(pixels))


def decode(data: bytes) -> np.ndarray:
    """RGB pixels [H, W, 3] uint8 of an encoded picture."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
