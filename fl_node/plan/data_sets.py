"""The data sets that a plan may name: what a plan says of each."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fl_node.errors import PlanError
from fl_node.runtime.settings import FILLED_IN, Choice, List, Settings, variants_of

SIDE = 28
"""Height and width of the images of MNIST, in pixels."""
MAX_CLASSES = 100_000

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Classes = Annotated[
    Annotated[int, Field(ge=2, le=MAX_CLASSES)] | None,
    FILLED_IN,
    Field(description="The number of classes; labels are 0 to one less."),
]
Side = Annotated[int, Field(ge=1, le=256)]


class Source(Settings):
    """A data set. What is filled in when a run is deployed is None before."""

    noun: ClassVar[str] = "images"
    """What the data are called in a sentence."""
    module: ClassVar[bool] = False
    """Whether a custom module loads the data."""

    name: str

    @property
    @abstractmethod
    def available(self) -> tuple[int, int]:
        """How many training and test images there are; 0 where that is not known yet."""

    @property
    @abstractmethod
    def class_count(self) -> int | None:
        """How many classes there are; None if that is not known yet."""

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images."""
        return (SIDE, SIDE)

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """How many samples each learner has, where the data decide it; else empty."""
        return ()

    @property
    def unknown(self) -> list[str]:
        """The settings that are filled in where the data are at hand when a run is deployed."""
        return [name for name in type(self).model_fields if getattr(self, name) is None]


class Mnist(Source):
    """MNIST: handwritten digits of 28 × 28 pixels."""

    sizes: ClassVar[tuple[int, int]] = (60_000, 10_000)

    name: Literal["mnist"] = "mnist"

    @property
    def available(self) -> tuple[int, int]:
        """How many images there are."""
        return self.sizes

    @property
    def class_count(self) -> int:
        """Ten digits."""
        return 10


class Digits(Mnist):
    """The small set of handwritten digits that scikit-learn ships, enlarged to MNIST's size."""

    sizes: ClassVar[tuple[int, int]] = (1_437, 360)

    name: Literal["digits"] = "digits"  # type: ignore[assignment]


class Folder(Source):
    """Four files like MNIST's with your own images."""

    name: Literal["folder"] = "folder"
    all_train: Annotated[Count | None, FILLED_IN, Field(description="Training images in the folder.")] = None
    all_test: Annotated[Count | None, FILLED_IN, Field(description="Test images in the folder.")] = None
    size: Annotated[
        tuple[Side, ...] | None, List, FILLED_IN, Field(description="Height and width of the images.")
    ] = None
    classes: Classes = None
    train_images_sha256: Annotated[
        Sha256 | None, FILLED_IN, Field(description="SHA-256 of the content of train-images-idx3-ubyte.")
    ] = None
    train_labels_sha256: Annotated[
        Sha256 | None, FILLED_IN, Field(description="SHA-256 of the content of train-labels-idx1-ubyte.")
    ] = None
    test_images_sha256: Annotated[
        Sha256 | None, FILLED_IN, Field(description="SHA-256 of the content of t10k-images-idx3-ubyte.")
    ] = None
    test_labels_sha256: Annotated[
        Sha256 | None, FILLED_IN, Field(description="SHA-256 of the content of t10k-labels-idx1-ubyte.")
    ] = None

    @property
    def available(self) -> tuple[int, int]:
        """How many images there are."""
        return (0 if self.all_train is None else self.all_train, 0 if self.all_test is None else self.all_test)

    @property
    def class_count(self) -> int | None:
        """How many classes there are."""
        return self.classes

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images.

        Raises
        ------
        PlanError
            The size is unknown until the run is deployed.
        """
        if self.size is None:
            raise PlanError("data.size: not known before the run is deployed")
        return self.size


class CustomData(Source):
    """What your own module loads."""

    noun: ClassVar[str] = "samples"
    module: ClassVar[bool] = True

    name: Literal["custom"] = "custom"
    samples: Annotated[
        tuple[Count, ...] | None,
        List,
        FILLED_IN,
        Field(description="The number of training samples of each learner, in the order of nodeId."),
    ] = None
    classes: Classes = None

    @property
    def available(self) -> tuple[int, int]:
        """How many training samples there are; how many test samples only the module knows."""
        return (0 if self.samples is None else sum(self.samples), 0)

    @property
    def class_count(self) -> int | None:
        """How many classes there are."""
        return self.classes

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """The number of samples of each learner.

        Raises
        ------
        PlanError
            The sizes are unknown until the run is deployed.
        """
        if self.samples is None:
            raise PlanError("data.samples: not known before the run is deployed")
        return self.samples


SOURCE_CHOICE = Choice("name", variants_of(Source, globals()), "mnist", implied=True, flat=True)
DATA_SIZES = {"mnist": Mnist.sizes, "digits": Digits.sizes}
"""Training and test images of each data set that is the same everywhere."""
