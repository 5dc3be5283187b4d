"""A font of 26 capital letters, 5 x 7 cells each; every letter touches all four sides of its box."""

from __future__ import annotations

import functools

import numpy as np

GLYPH_WIDTH = 5
GLYPH_HEIGHT = 7

_ROWS = {
    "a": ".###. #...# #...# ##### #...# #...# #...#",
    "b": "####. #...# #...# ####. #...# #...# ####.",
    "c": ".#### #.... #.... #.... #.... #.... .####",
    "d": "####. #...# #...# #...# #...# #...# ####.",
    "e": "##### #.... #.... ####. #.... #.... #####",
    "f": "##### #.... #.... ####. #.... #.... #....",
    "g": ".#### #.... #.... #.### #...# #...# .####",
    "h": "#...# #...# #...# ##### #...# #...# #...#",
    "i": "##### ..#.. ..#.. ..#.. ..#.. ..#.. #####",
    "j": "..### ....# ....# ....# ....# #...# .###.",
    "k": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "l": "#.... #.... #.... #.... #.... #.... #####",
    "m": "#...# ##.## #.#.# #.#.# #...# #...# #...#",
    "n": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "o": ".###. #...# #...# #...# #...# #...# .###.",
    "p": "####. #...# #...# ####. #.... #.... #....",
    "q": ".###. #...# #...# #...# #.#.# #..#. .##.#",
    "r": "####. #...# #...# ####. #.#.. #..#. #...#",
    "s": ".#### #.... #.... .###. ....# ....# ####.",
    "t": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "u": "#...# #...# #...# #...# #...# #...# .###.",
    "v": "#...# #...# #...# #...# .#.#. .#.#. ..#..",
    "w": "#...# #...# #...# #.#.# #.#.# ##.## #...#",
    "x": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    "y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..",
    "z": "##### ....# ...#. ..#.. .#... #.... #####",
}
LETTERS = "".join(_ROWS)


@functools.cache
def glyphs() -> np.ndarray:
    """All letters in the order of `LETTERS`, float32 `(26, 7, 5)` of zeros and ones."""
    bitmaps = [[[cell == "#" for cell in row] for row in rows.split()] for rows in _ROWS.values()]
    table = np.asarray(bitmaps, dtype=np.float32)
    table.setflags(write=False)
    return table


@functools.lru_cache(maxsize=1024)
def word_bitmap(text: str) -> np.ndarray:
    """A word, float32 `(7, 6 * len(text) - 1)` of zeros and ones, one empty column between letters."""
    bitmap = np.zeros((GLYPH_HEIGHT, (GLYPH_WIDTH + 1) * len(text) - 1), dtype=np.float32)
    for position, letter in enumerate(text):
        left = position * (GLYPH_WIDTH + 1)
        bitmap[:, left : left + GLYPH_WIDTH] = glyphs()[LETTERS.index(letter)]
    bitmap.setflags(write=False)
    return bitmap
