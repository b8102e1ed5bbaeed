"""Configuration of ``import``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_serializer, field_validator

from logitcache.cache.format.card import CardConfig
from logitcache.config import Config, key_of
from logitcache.data.packing import ImagesConfig
from logitcache.data.readers import DataConfig
from logitcache.encoding.choice import EncodingConfig
from logitcache.errors import redacted
from logitcache.exchange.formats import FORMATS
from logitcache.exchange.outputs import Values

__all__ = ["ImportConfig"]

_Format = Annotated[str, key_of(lambda: FORMATS)]


class ImportConfig(Config):
    """Configuration of an import of teacher outputs.

    Attributes:
        outputs: A folder of record files of TinyViT, or a file ``.npz``, ``.npy`` or ``.parquet``.
        cache: Folder or URL of a new cache, or of one of the same images.
        data: Image set; by default the images in the cache.
        teacher: Name of the teacher in the cache.
        format: Format of the outputs: ``tinyvit``, ``npz``, ``npy`` or ``parquet``; recognized by
            default.
        values: What the numbers are, where the file does not tell: ``logits``, ``log_probs`` or
            ``probabilities``.
        keys: Text file with the names of the images, one per line, where the file has none.
        class_names: Text file with the names of the classes in the order of the outputs.
        num_classes: Number of classes, where neither the file nor the images tell.
        subset: Whether images without outputs are left out, instead of being an error.
        images: Images to store in a new cache, as ``packed:256``; none by default. Views cannot be
            stored, since the pixels that the teacher was given are not known.
        encoding: Encoding in the cache; by default as many classes as the file has.
        unit_rows: Rows per unit, a power of two; fixed when the cache is created.
        threads: Number of decoding threads; all processors by default.
        on_bad_image: ``error`` to stop at an image that cannot be decoded, or ``skip`` to mark its
            row as unreadable and continue.
        card: Licenses, creators and other facts for the card of the cache.
    """

    outputs: str
    cache: str
    data: DataConfig | None = None
    teacher: str
    format: _Format | None = None
    values: Values | None = None
    keys: str | None = None
    class_names: str | None = None
    num_classes: Annotated[int, Field(ge=2)] | None = None
    subset: bool = False
    images: ImagesConfig | None = None
    encoding: EncodingConfig = EncodingConfig()
    unit_rows: int | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    card: CardConfig = CardConfig()

    @field_validator("images")
    @classmethod
    def _no_views(cls, images: ImagesConfig | None) -> ImagesConfig | None:
        if images is not None and images.are_views:
            raise ValueError(
                "views cannot be stored, since the pixels that the teacher was given are unknown: "
                "use packed:SIDE"
            )
        return images

    @field_serializer("cache")
    def _without_secrets(self, url: str) -> str:
        return redacted(url)
