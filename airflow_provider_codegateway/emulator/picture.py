"""Pictures in planar YUV, drawn without numpy and without system fonts."""

from __future__ import annotations

import textwrap
from fractions import Fraction
from functools import lru_cache

import av

from . import font

FPS = 24
_CELL_WIDTH, _CELL_HEIGHT = font.COLUMNS + 1, font.ROWS + 1

_LARGEST_CROP = 8

Colour = tuple[int, int, int]
"""Y, U, V."""

BLACK: Colour = (16, 128, 128)
DARK: Colour = (24, 128, 128)
WHITE: Colour = (235, 128, 128)
GREY: Colour = (170, 128, 128)


class Canvas:
    """A yuv420p picture whose rows are as long as the encoder wants them. Even coordinates only."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._planes = [
            (plane.line_size, bytearray(plane.line_size * plane.height))
            for plane in av.VideoFrame(width, height, "yuv420p").planes
        ]

    def fill(self, left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
        """Fill a rectangle."""
        for (stride, pixels), value, shrink in zip(self._planes, colour, (1, 2, 2), strict=True):
            start, stop = left // shrink, right // shrink
            row = bytes([value]) * (stop - start)
            for y in range(top // shrink, bottom // shrink):
                pixels[y * stride + start : y * stride + stop] = row

    def paste(self, picture: av.VideoFrame, left: int, top: int, right: int, bottom: int) -> None:
        """Fill a rectangle with a picture: cropped, or squeezed where that would leave too little of it."""
        width, height = right - left, bottom - top
        across, down = Fraction(width, picture.width), Fraction(height, picture.height)
        if max(across, down) > _LARGEST_CROP * min(across, down):
            picture = picture.reformat(width=width, height=height, format="rgb24")
            across = down = Fraction(1)
        scale = max(across, down)
        # By way of RGB, so that a JPEG's full range becomes the range of video.
        scaled = picture.reformat(
            width=max(width, _even(picture.width * scale)),
            height=max(height, _even(picture.height * scale)),
            format="rgb24",
        ).reformat(format="yuv420p")
        x, y = (scaled.width - width) // 4 * 2, (scaled.height - height) // 4 * 2
        for (stride, pixels), source, shrink in zip(self._planes, scaled.planes, (1, 2, 2), strict=True):
            rows = bytes(source)
            length = width // shrink
            for row in range(height // shrink):
                taken = (y // shrink + row) * source.line_size + x // shrink
                put = (top // shrink + row) * stride + left // shrink
                pixels[put : put + length] = rows[taken : taken + length]

    def write(self, text: str, left: int, top: int, scale: int, colour: Colour, paper: Colour = DARK) -> None:
        """Write one line on a ground of the colour `paper`. What goes over the right edge is cut."""
        stride, pixels = self._planes[0]
        luma = bytes([paper[0], colour[0]]).ljust(256)
        for row in range(font.ROWS):
            line = b"".join(_glyph_row(character, row, scale) for character in text).translate(luma)
            line = line[: self.width - left]
            for y in range(top + row * scale, min(top + (row + 1) * scale, self.height)):
                pixels[y * stride + left : y * stride + left + len(line)] = line

    def copy(self) -> Canvas:
        """A canvas of its own with the same picture."""
        other = Canvas(self.width, self.height)
        other._planes = [(stride, pixels[:]) for stride, pixels in self._planes]
        return other

    def frame(self, number: int) -> av.VideoFrame:
        """The picture as frame `number` of a clip."""
        frame = av.VideoFrame(self.width, self.height, "yuv420p")
        for plane, (_, pixels) in zip(frame.planes, self._planes, strict=True):
            plane.update(bytes(pixels))
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        return frame


def columns(width: int, scale: int) -> int:
    """How many characters fit into a width in pixels."""
    return max(1, width // (_CELL_WIDTH * scale))


def line_height(scale: int) -> int:
    """Pixels from one line to the next."""
    return _CELL_HEIGHT * scale


def wrap(text: str, width: int, scale: int) -> list[str]:
    """Break text into lines that fit a width in pixels."""
    return [
        line
        for paragraph in font.plain(text).splitlines()
        for line in textwrap.wrap(paragraph, columns(width, scale)) or [""]
    ]


@lru_cache(maxsize=8192)
def _glyph_row(character: str, row: int, scale: int) -> bytes:
    bits = font.row_of(character, row)
    pixels = [bits >> (font.COLUMNS - 1 - column) & 1 for column in range(font.COLUMNS)]
    return b"".join(bytes([pixel]) * scale for pixel in (*pixels, 0))


def _even(value: Fraction) -> int:
    return 2 * round(value / 2)
