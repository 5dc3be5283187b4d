"""How `datasets` decodes the pictures of rows: by `decode_image`, with errors that name the picture."""

from __future__ import annotations

import warnings
from typing import Any

from PIL import Image

from ..dependencies import needed_for
from ..errors import DataError, ImageError
from .images import decode_image, picture_name, read_encoded

with needed_for("data sets"):
    import datasets
    from datasets.features.features import register_feature


class PictureFeature(datasets.Image):
    """A column type stored as `datasets.Image` is, which gives upright RGB pictures whatever the file is like.

    It counts as equal to a decoding `datasets.Image`, so that rows of both kinds can be mixed.
    """

    # The name that stands for the class in the metadata of Arrow tables.
    _type: str = "UniMMPicture"

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict | None = None) -> Image.Image:
        """The picture of `{"bytes", "path"}`; `path` names it where there are bytes.

        Raises:
            DataError: the picture cannot be read or does not decode.
        """
        try:
            return decode_image(read_encoded(value), name=picture_name(value))
        except ImageError as error:
            raise DataError(str(error)) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    def __hash__(self) -> int:
        return hash((self.mode, self.decode))


with warnings.catch_warnings():
    # `datasets` warns that the registration of types is experimental.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(PictureFeature, PictureFeature._type)
