"""A figure as a small file: the smaller of a PNG with a palette and a JPEG, never above 40 kB."""

import io

LIMIT_BYTES = 40_000
START_DPI = 100
MAX_COLOUR_ERROR = 40  # of 255: a palette that is further off has lost a rare colour, such as a thin outline's


def encode(figure, limit: int = LIMIT_BYTES) -> tuple[bytes, str, int]:
    """Draw a matplotlib figure and encode it in at most ``limit`` bytes.

    At each resolution the palette PNG and JPEGs of falling quality are tried; then the resolution falls. The
    display width stays that of the first resolution, so that a coarser file is not shown smaller.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        limit: bytes.

    Returns:
        The file's bytes, its suffix (``"png"`` or ``"jpg"``) and the width to show it at, in pixels.
    """
    dpi = START_DPI
    shown_width = None
    while True:
        picture = _draw(figure, dpi)
        shown_width = shown_width or picture.width
        smallest = min(_candidates(picture, limit), key=lambda candidate: len(candidate[0]))
        if len(smallest[0]) <= limit:
            return *smallest, shown_width
        dpi *= min(0.95, (limit / len(smallest[0])) ** 0.5)  # bytes go roughly with the number of pixels


def _draw(figure, dpi: float):
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.05, facecolor="white")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def _candidates(picture, limit: int):
    """Give (bytes, suffix): the PNG if its palette holds, then JPEGs until one fits, better quality first."""
    from PIL import Image, ImageChops

    palette = picture.quantize(colors=256, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    error = ImageChops.difference(picture, palette.convert("RGB")).getextrema()
    if max(high for _, high in error) <= MAX_COLOUR_ERROR:
        yield _bytes(palette, "PNG", optimize=True), "png"
    for quality in (88, 76, 64, 52, 42):
        # 4:4:4: chroma subsampling would smear the coloured one-voxel outlines that the figures are about
        encoded = _bytes(picture, "JPEG", quality=quality, subsampling=0)
        yield encoded, "jpg"
        if len(encoded) <= limit:
            return


def _bytes(picture, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
