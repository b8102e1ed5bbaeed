"""Configuration of ``precompute``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from logitcache.cache.format.card import CardConfig
from logitcache.config import Bytes, Config
from logitcache.data.packing import ImagesConfig
from logitcache.data.readers import DataConfig
from logitcache.encoding.choice import EncodingConfig
from logitcache.errors import redacted
from logitcache.teachers.member import Precision, TeacherConfig
from logitcache.views.render import IMAGE_MEMORY
from logitcache.views.spec import ViewsConfig

__all__ = ["PrecomputeConfig"]


class PrecomputeConfig(Config):
    """Configuration of a cache and of the run that computes it.

    Attributes:
        cache: Folder or URL of the cache; it is created if it does not exist.
        data: Image set; required unless it is passed from Python, or the cache contains its images
            and no images are added.
        images: What to store of the images in a new cache: ``packed:256``, or ``views`` for each
            rendered view; nothing by default.
        teachers: Teachers by name. A teacher that is in the cache may be left out, unless images
            are added.
        views: Views of the images that the teachers are run on.
        add_views: Whether views with other settings may be added to an existing cache. Further
            draws of its recipes can always be added.
        encoding: Encoding of the logits.
        batch_size: Images per forward pass, a power of two, halved until a batch fits into the
            memory of the device; or ``auto`` for the fastest. Recorded for each teacher, and kept
            when a run is resumed.
        unit_rows: Rows per unit of work, a power of two; fixed when the cache is created.
        device: A torch device, for example ``cpu`` or ``cuda:1``; or ``auto``.
        precision: Floating-point type of the forward passes.
        threads: Number of decoding threads; all processors by default.
        image_memory: Maximum memory for decoded images, per process, for example ``2GB``: all views
            of a block of images are rendered from one decoding. Images that do not fit, and all
            images if it is 0, are decoded again for every view.
        on_bad_image: ``error`` to stop at an image that cannot be decoded, or ``skip`` to mark its
            row as unreadable and continue.
        min_accuracy: Minimum accuracy of a new teacher on a few hundred labeled images, checked
            before it is run on all images; by default a value that is clearly above chance.
        workers: Number of worker processes on this machine, one per GPU, or each with a share of
            the processors; by default only this process computes.
        card: Licenses, creators and other facts for the card of the cache.
        scheduler: Address of a dask scheduler whose workers compute, for example
            ``tcp://host:8786``.
    """

    cache: str
    data: DataConfig | None = None
    images: ImagesConfig | None = None
    teachers: dict[str, TeacherConfig] = Field(min_length=1)
    views: ViewsConfig = ViewsConfig()
    add_views: bool = False
    encoding: EncodingConfig = EncodingConfig()
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"] = 64
    unit_rows: int | None = None
    device: str = "auto"
    precision: Precision = "float32"
    threads: Annotated[int, Field(ge=1)] | None = None
    image_memory: Annotated[Bytes, Field(ge=0)] = IMAGE_MEMORY
    on_bad_image: Literal["error", "skip"] = "error"
    min_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    card: CardConfig = CardConfig()
    scheduler: str | None = None

    @field_serializer("cache")
    def _without_secrets(self, url: str) -> str:
        return redacted(url)

    @property
    def batch(self) -> int:
        """Images per forward pass, once ``auto`` has been replaced by a number."""
        assert self.batch_size != "auto", "replaced by choose_batch"
        return self.batch_size

    @field_validator("batch_size", mode="before")
    @classmethod
    def _typed(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("batch_size")
    @classmethod
    def _power_of_two(cls, value: int | Literal["auto"]) -> int | Literal["auto"]:
        if value != "auto" and value & (value - 1):
            raise ValueError(
                "the batch size must be a power of two, so that units are whole batches"
            )
        return value

    @model_validator(mode="after")
    def _features_without_logits(self) -> Self:
        for name, teacher in self.teachers.items():
            if teacher.head == "none" and not teacher.features:
                raise ValueError(
                    f"teacher {name!r} with head: none has no logits, so it needs features: "
                    f"--feature {name}=pre_logits, or another layer"
                )
        return self

    @model_validator(mode="after")
    def _sigmoid_is_dense(self) -> Self:
        independent = [name for name, one in self.teachers.items() if one.head == "sigmoid"]
        if independent and not self.encoding.stores_all_classes:
            raise ValueError(
                f"teacher {independent[0]!r} with head: sigmoid has independent classes, which are "
                "stored dense only: remove kind, top_k, mass, budget and max_kl of encoding "
                "(dense_values: uint8 takes half of the bytes), or run this teacher on its own"
            )
        return self

    @model_validator(mode="after")
    def _one_cluster(self) -> Self:
        if self.workers is not None and self.scheduler is not None:
            raise ValueError(
                "workers starts a local cluster, scheduler joins a running one: set only one"
            )
        if self.on_cluster and self.batch_size == "auto":
            raise ValueError("batch_size auto needs a single process: set a number for workers")
        return self

    @property
    def on_cluster(self) -> bool:
        """Whether dask workers compute instead of this process."""
        return self.workers is not None or self.scheduler is not None
