"""A 5x8 bitmap font for printable ASCII, drawn for this emulator: wheels of ffmpeg come without fonts."""

from __future__ import annotations

import unicodedata

COLUMNS, ROWS = 5, 8

# Eight base-32 digits a glyph, from " " to "~". Each is one row, top first, the eighth for descenders;
# its five bits are the pixels.
_SHEET = (
    "0000000044444040aaa00000aavavaa04fke5u40op248j30cik8lid044800000248884208422248004lel400044v4400"
    "00000c48000v000000000cc001248g00ehjlphe04c4444e0eh1248v0v2421he026aiv220vgu11he068guhhe0v1248880"
    "ehhehhe0ehhf12c00cc0cc000cc0cc48248g842000v0v00084212480eh124040eh1dlle0ehhvhhh0uhhuhhu0ehggghe0"
    "sihhhis0vgguggv0vgguggg0ehgnhhf0hhhvhhh0e44444e072222ic0hikokih0ggggggv0hrllhhh0hhpljhh0ehhhhhe0"
    "uhhuggg0ehhhlid0uhhukih0fgge11u0v4444440hhhhhhe0hhhhha40hhhllla0hha4ahh0hhha4440v1248gv0e88888e0"
    "0g842100e22222e04ah000000000000v8420000000e1fhf0ggmphhu000egghe011djhhf000ehvge0698s888000fhhf1e"
    "ggmphhh040c444e0206222icggikoki0c44444e000qllhh000mphhh000ehhhe000uhhugg00fhhf1100mpggg000fge1u0"
    "88s8896000hhhjd000hhha4000hhlla000ha4ah000hhhf1e00v248v0244844204444444084424480008l2000"
)
_UNKNOWN = "vhhhhhv0"
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        "\u00d7": "x",
        "\u00df": "ss",
        "\u00e6": "ae",
        "\u00f8": "o",
        "\u0142": "l",
        "\u20ac": "EUR",
    }
)


def plain(text: str) -> str:
    """Bring text nearer to ASCII: accents go, typographic signs become plain ones, the rest stays."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    return "".join(c for c in decomposed if not unicodedata.combining(c) and (c.isprintable() or c.isspace()))


def row_of(character: str, row: int) -> int:
    """One row of a glyph as `COLUMNS` bits; a hollow box stands for what the font lacks."""
    start = (ord(character) - ord(" ")) * ROWS
    glyph = _SHEET[start : start + ROWS] if " " <= character <= "~" else _UNKNOWN
    return int(glyph[row], 32)
