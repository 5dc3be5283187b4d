"""Packages that are imported where they are used, and what is said where one is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .errors import MissingDependencyError

#: Packages that an extra of unimm brings; any other one is installed by its own name.
EXTRAS = {"bitsandbytes": "quantization", "deepspeed": "deepspeed", "gradio": "app", "torchmetrics": "eval"}


@contextlib.contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """An import that fails inside of the block says which package is needed for what, and how to get it.

        with needed_for("KL tokenizers"):
            from diffusers import AutoencoderKL

    Args:
        purpose: what needs the package, as it reads after "is needed for".

    Raises:
        MissingDependencyError: the import failed.
    """
    try:
        yield
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise missing_dependency((error.name or str(error)).partition(".")[0], purpose) from error


def missing_dependency(package: str, purpose: str) -> MissingDependencyError:
    """The error that names a package, what needs it, and the command that installs it."""
    source = f"'unimm[{EXTRAS[package]}]'" if package in EXTRAS else package
    return MissingDependencyError(f"{package} is needed for {purpose}: pip install {source}", name=package)
