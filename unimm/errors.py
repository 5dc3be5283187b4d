"""What bad input raises. Every message says what was given, what was expected, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UniMMError(Exception):
    """Base class of every error that `unimm` raises for a user's input."""


class LayoutError(UniMMError, ValueError):
    """Tokens, images or sizes do not have the arrangement that a plan, a tokenizer or a model was built for."""


class CodebookError(UniMMError, ValueError):
    """Token ids lie outside of the codebook."""


class ConfigError(UniMMError, ValueError):
    """A config names an unknown field, a wrong type, or parts that do not fit each other."""


class RecipeError(UniMMError, ValueError):
    """A recipe or its command line has an unknown field, a wrong type or a missing value."""


class DataError(UniMMError, ValueError):
    """A dataset, a data card or a row does not have what it should."""


class ImageError(UniMMError, ValueError):
    """A picture cannot be decoded, or is refused on purpose."""


class CheckpointError(UniMMError, ValueError):
    """A checkpoint has missing or extra keys, wrong shapes, or is no checkpoint at all."""


class OutputError(UniMMError, OSError):
    """An output folder or file cannot be written (read-only, full disk, occupied by something else)."""


class LicenseError(UniMMError, ValueError):
    """Weights would be published without saying under which terms they may be used."""


class HubError(UniMMError, OSError):
    """The Hub refuses what was asked, or cannot be reached."""


class MissingDependencyError(UniMMError, ImportError):
    """An optional package is needed for what was asked."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ` (did you mean 'x'?)` for the known name closest to `name`, or the list of known names.

    Args:
        name: what the user wrote.
        known: the names that exist.
    """
    name, known = str(name), sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(known)})" if known else ""
