"""HEIC pictures, as iPhones save them: read where pillow-heif is installed."""

from __future__ import annotations

import io

from PIL import Image

from ..errors import ImageError

# ISO/IEC 23008-12, 10.2: brands of HEVC-coded pictures. "mif1" names no codec and may be AVIF.
_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def is_heif(data: bytes) -> bool:
    """Whether the file says that it is a HEIC picture."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS and b"avif" not in data[16:64]


def opened(data: bytes) -> Image.Image:
    """The first picture, not decoded yet. Raises ImageError without a decoder."""
    try:
        # Not register_heif_opener(), which would change what all of the process opens
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            "the picture is a HEIC picture, as iPhones save them, which cannot be read here; save it as JPEG or "
            "PNG, or "
            "install pillow-heif in this Python (pip install pillow-heif)"
        ) from None
    image: Image.Image = HeifImageFile(io.BytesIO(data))
    return image
