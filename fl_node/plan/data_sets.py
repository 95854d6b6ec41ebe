"""The data sets that a plan can choose, and their settings."""

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
    """A data set. Settings that deployment fills in are None before."""

    noun: ClassVar[str] = "images"
    """The noun for the samples in messages."""
    module: ClassVar[bool] = False
    """Whether a custom module loads the data."""

    name: str

    @property
    @abstractmethod
    def available(self) -> tuple[int, int]:
        """The numbers of training and test images; 0 where not known yet."""

    @property
    @abstractmethod
    def class_count(self) -> int | None:
        """The number of classes; None if not known yet."""

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images."""
        return (SIDE, SIDE)

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """The number of samples of each learner if the data set determines it; otherwise empty."""
        return ()

    @property
    def unknown(self) -> list[str]:
        """The settings that deployment still has to fill in from the data."""
        return [name for name in type(self).model_fields if getattr(self, name) is None]


class Mnist(Source):
    """MNIST: handwritten digits of 28 × 28 pixels."""

    sizes: ClassVar[tuple[int, int]] = (60_000, 10_000)

    name: Literal["mnist"] = "mnist"

    @property
    def available(self) -> tuple[int, int]:
        """The numbers of training and test images."""
        return self.sizes

    @property
    def class_count(self) -> int:
        """The number of digits."""
        return 10


class Digits(Mnist):
    """The small set of handwritten digits in scikit-learn, enlarged to MNIST's image size."""

    sizes: ClassVar[tuple[int, int]] = (1_437, 360)

    name: Literal["digits"] = "digits"  # type: ignore[assignment]


class Folder(Source):
    """Your own images, in four files in MNIST's format."""

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
        """The numbers of training and test images."""
        return (0 if self.all_train is None else self.all_train, 0 if self.all_test is None else self.all_test)

    @property
    def class_count(self) -> int | None:
        """The number of classes."""
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
    """Data that your own module loads."""

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
        """The number of training samples, and 0 because only the module knows the number of test samples."""
        return (0 if self.samples is None else sum(self.samples), 0)

    @property
    def class_count(self) -> int | None:
        """The number of classes."""
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
"""The numbers of training and test images of the built-in data sets."""
