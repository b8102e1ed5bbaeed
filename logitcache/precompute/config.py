"""Configuration of ``precompute``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from logitcache.config import Bytes, Config
from logitcache.data.readers import DataConfig
from logitcache.encoding.choice import EncodingConfig
from logitcache.errors import redacted
from logitcache.teachers.member import Precision, TeacherConfig
from logitcache.views.render import IMAGE_MEMORY
from logitcache.views.spec import ViewsConfig

__all__ = ["PrecomputeConfig"]


class PrecomputeConfig(Config):
    """Teachers, images and views of a cache, and how it is computed.

    Attributes:
        cache: Folder or URL of the cache; it is created if it does not exist.
        data: The images.
        teachers: The teachers, by name. Teachers already in the cache need not be named again.
        views: What they look at.
        add_views: Whether a cache gets views with other settings than its own. More draws of
            the same recipe can always be added.
        encoding: How their logits are stored.
        batch_size: Images of one forward, a power of two, halved until they fit on the device; or
            ``auto`` for the fastest. Recorded for each teacher, and kept when resuming.
        unit_rows: Rows of a unit of work, a power of two; fixed when the cache is made.
        device: ``auto``, or as torch names it.
        precision: What the teachers compute in.
        threads: Threads that decode; all processors by default.
        image_memory: Bytes that decoded images may take in memory, in each process, as ``2GB``: all
            views of a block of images are rendered from one decoding. Images beyond, and all with
            0, are decoded for every view.
        on_bad_image: ``error``, or ``skip`` to mark its row as unreadable and continue.
        min_accuracy: Share of a few hundred labeled images that a new teacher has to get right
            before it is run on all of them; clearly more than chance by default.
        workers: Processes of this machine that compute, one for each GPU or for a share of the
            processors each; this process alone by default.
        scheduler: Address of a dask scheduler whose workers compute, as ``tcp://host:8786``.
    """

    cache: str
    data: DataConfig
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
    scheduler: str | None = None

    @field_serializer("cache")
    def _without_secrets(self, url: str) -> str:
        return redacted(url)

    @property
    def batch(self) -> int:
        """Images of one forward, once that is settled."""
        assert self.batch_size != "auto", "settled by choose_batch"
        return self.batch_size

    @field_validator("batch_size", mode="before")
    @classmethod
    def _typed(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("batch_size")
    @classmethod
    def _power_of_two(cls, value: int | Literal["auto"]) -> int | Literal["auto"]:
        if value != "auto" and value & (value - 1):
            raise ValueError("a batch must be a power of two, so that units are whole batches")
        return value

    @model_validator(mode="after")
    def _one_cluster(self) -> Self:
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("workers starts a cluster and scheduler joins one: give one of them")
        if self.on_cluster and self.batch_size == "auto":
            raise ValueError("batch_size auto is for one process: give the number for the workers")
        return self

    @property
    def on_cluster(self) -> bool:
        """Whether other processes compute."""
        return self.workers is not None or self.scheduler is not None
