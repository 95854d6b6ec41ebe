"""Data sets: where they come from, and that they are what they should be.

MNIST is looked for in the folder given (``--data-dir`` or ``FL_NODE_DATA_DIR``), then in the user's cache, and
else downloaded there. Wherever it comes from, the uncompressed content is verified, so that a mirror that
compressed the files again will do and one that changed an image will not. A folder with your own images has
four files of the same names; their hashes stand in the plan.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import io
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import platformdirs
import requests

from fl_node.errors import DataError
from fl_node.plan.data_sets import SIDE
from fl_node.runtime.tensors import Images as Images
from fl_node.runtime.tensors import Indices as Indices
from fl_node.runtime.tensors import Labels as Labels
from fl_node.seeds import permutation
from fl_node.wording import counted

Report = Callable[[str], None]

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
FOLDER_FILES = {
    "train_images_sha256": "train-images-idx3-ubyte",
    "train_labels_sha256": "train-labels-idx1-ubyte",
    "test_images_sha256": "t10k-images-idx3-ubyte",
    "test_labels_sha256": "t10k-labels-idx1-ubyte",
}
"""The files of your own images, by the setting of the plan that has the hash of their content."""
MAX_FILE_BYTES = 64 * 1024**2
MAX_FOLDER_FILE_BYTES = 1024**3
DIGITS_TEST = 360


@dataclass(frozen=True)
class DataSet:
    """Grey images with their labels.

    Images have shape ``(count, height, width)``, 28 × 28 unless they are your own, and values 0 to 255; labels have
    shape ``(count,)`` and values from 0, up to 9 unless they are your own.
    """

    name: str
    source: str
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of the content of each of your own files, by the setting of the plan that has it."""

    def training(self, samples: Indices) -> tuple[Images, Labels]:
        """Return the training images with these indices, and their labels."""
        return self.train_images[samples], self.train_labels[samples]

    def labels(self) -> Labels:
        """Return the labels of all training images."""
        return self.train_labels

    def tests(self, count: int) -> tuple[Images, Labels]:
        """Return the first test images, and their labels."""
        return self.test_images[:count], self.test_labels[:count]


def load(name: str, folder: Path | None = None, report: Report = lambda _: None) -> DataSet:
    """Return a data set by the name that a plan gives it.

    Parameters
    ----------
    name
        ``mnist``, or ``digits``: the 1,797 small digits that scikit-learn ships, enlarged to 28 × 28.
    folder
        Folder with the four MNIST files in IDX format, compressed by gzip or not. Without it the environment
        variable ``FL_NODE_DATA_DIR`` counts, then the user's cache, then the download.
    report
        Called with one line a step of a download.

    Raises
    ------
    DataError
        The data set is not available, or a file differs from the published one.
    """
    if name == "mnist":
        return _mnist(folder, report)
    if name == "digits":
        return _digits()
    raise DataError(f"unknown data set {name!r}; should be mnist or digits")


def at_hand(folder: Path | None = None, report: Report = lambda _: None) -> DataSet:
    """Return MNIST, or your own images that are in its place; arguments as for :func:`load`.

    Raises
    ------
    DataError
        Neither can be had; the message is about MNIST if a file of it is there, else about your own images.
    """
    try:
        return _mnist(folder, report)
    except DataError:
        place = folder or (Path(os.environ["FL_NODE_DATA_DIR"]) if os.environ.get("FL_NODE_DATA_DIR") else None)
        if place is None:
            raise
        if not _has_mnist(place):
            return from_folder(place, {})
        raise


def _has_mnist(folder: Path) -> bool:
    """Return whether a file in a folder is MNIST's."""
    for name, wanted in MNIST_SHA256.items():
        with contextlib.suppress(DataError):
            if hashlib.sha256(_read(folder, name, MAX_FOLDER_FILE_BYTES)[0]).hexdigest() == wanted:
                return True
    return False


def cache_dir() -> Path:
    """Return the folder that downloads are kept in (``FL_NODE_CACHE``, else the user's cache)."""
    root = os.environ.get("FL_NODE_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("fl-node")) / "data" / "mnist"


def _mnist(folder: Path | None, report: Report) -> DataSet:
    if folder is None and (given := os.environ.get("FL_NODE_DATA_DIR")):
        folder = Path(given)
    if folder is None:
        folder = cache_dir()
        _download(folder, report)
    content = {name: _verified(folder, name) for name in MNIST_SHA256}
    images = {name: _images(content[f"{name}-images-idx3-ubyte"]) for name in ("train", "t10k")}
    labels = {name: _labels(content[f"{name}-labels-idx1-ubyte"]) for name in ("train", "t10k")}
    return DataSet("mnist", str(folder), images["train"], labels["train"], images["t10k"], labels["t10k"])


def from_folder(path: Path | None, wanted: Mapping[str, str | None]) -> DataSet:
    """Return your own images from a folder with four files in IDX format, as MNIST's are.

    Parameters
    ----------
    path
        The folder, else the one that ``FL_NODE_DATA_DIR`` names; each file compressed by gzip or not.
    wanted
        The SHA-256 that the content of each file should have, by the keys of :data:`FOLDER_FILES`; None for any.

    Raises
    ------
    DataError
        A file is missing, has another content, or is not in this format.
    """
    if path is None:
        given = os.environ.get("FL_NODE_DATA_DIR")
        if not given:
            raise DataError("the plan uses images from a folder; set --data-dir or FL_NODE_DATA_DIR")
        path = Path(given)
    content, digests = {}, {}
    for key, name in FOLDER_FILES.items():
        content[name], file = _read(path, name, MAX_FOLDER_FILE_BYTES)
        digests[key] = hashlib.sha256(content[name]).hexdigest()
        if wanted.get(key) not in (None, digests[key]):
            raise DataError(
                f"{file} is not the plan's file: its content has SHA-256 {digests[key][:16]}…, the plan requires "
                f"{str(wanted[key])[:16]}…"
            )
    train, test = (_pairs(path, content, part) for part in ("train", "t10k"))
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = " and ".join(" × ".join(map(str, images.shape[1:])) for images, _ in (train, test))
        raise DataError(f"data folder {path}: training and test images differ in size: {sizes}")
    return DataSet("folder", str(path), *train, *test, sha256=digests)


def _pairs(path: Path, content: Mapping[str, bytes], part: str) -> tuple[Images, Labels]:
    names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    images, labels = (_idx(content[name], 3 - 2 * n, path / name) for n, name in enumerate(names))
    if len(images) != len(labels):
        raise DataError(f"{path / names[1]} has {counted(len(labels), 'label')} for {counted(len(images), 'image')}")
    if not images.size:
        raise DataError(f"{path / names[0]} has no images")
    return images, labels.astype(np.int64)


def _idx(content: bytes, dimensions: int, path: Path) -> Images:
    """Return the array of bytes in a file in IDX format (http://yann.lecun.com/exdb/mnist/).

    Raises
    ------
    DataError
        The content is not in IDX format, or does not have the size that its header states.
    """
    start = 4 + 4 * dimensions
    if not content:
        raise DataError(f"{path} is empty")
    if content.startswith(b"\x1f\x8b"):
        raise DataError(f"{path} is a gzip file; rename it to {path.name}.gz")
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        wanted = bytes([0, 0, 8, dimensions]).hex()
        raise DataError(f"{path} is not an IDX file: it starts with {content[:4].hex()}, should start with {wanted}")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    if len(content) - start != math.prod(shape):
        size = " × ".join(map(str, shape))
        raise DataError(f"{path} should have {size} bytes after its {start}-byte header (has {len(content) - start})")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _images(content: bytes) -> Images:
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, SIDE, SIDE)


def _labels(content: bytes) -> Labels:
    return np.frombuffer(content, np.uint8, offset=8).astype(np.int64)


def _verified(folder: Path, name: str) -> bytes:
    content, path = _read(folder, name, MAX_FILE_BYTES)
    _verify(content, name, str(path))
    return content


def _read(folder: Path, name: str, most: int) -> tuple[bytes, Path]:
    """Return a file's content, decompressed if it is compressed, and the path of the file.

    Raises
    ------
    DataError
        The file is missing, can't be read, or has more than ``most`` bytes.
    """
    try:
        there = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise DataError(f"data folder {folder}: {error.strerror or error}") from error
    paths = [folder / file_name for file_name in (f"{name}.gz", name) if file_name in there]
    path = next((file for file in paths if file.is_file()), paths[0] if paths else None)
    if path is None:
        raise DataError(f"data folder {folder} has neither {name}.gz nor {name}")
    if path.is_dir():
        raise DataError(f"{path} should be a file, not a folder")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > most:
        raise DataError(f"{path} has more than {most} bytes")
    return content, path


def _verify(content: bytes, name: str, source: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != MNIST_SHA256[name]:
        raise DataError(
            f"{source} is not MNIST's {name}: its content has SHA-256 {digest[:16]}…, "
            f"should be {MNIST_SHA256[name][:16]}…"
        )


def _download(folder: Path, report: Report) -> None:
    missing = [name for name in MNIST_SHA256 if not (folder / f"{name}.gz").is_file()]
    if not missing:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cache folder {folder}: {error.strerror}; set FL_NODE_CACHE to another folder") from error
    given = os.environ.get("FL_NODE_MNIST_URL")
    mirrors = (given.rstrip("/") + "/",) if given else MNIST_MIRRORS
    failures: list[str] = []
    for mirror in mirrors:
        try:
            for name in missing:
                _fetch(f"{mirror}{name}.gz", folder / f"{name}.gz", name, report)
            return
        except (requests.RequestException, DataError) as error:
            failures.append(f"{mirror} {_cause(error)}")
    raise DataError(
        f"MNIST can't be downloaded ({'; '.join(failures)}); set --data-dir or FL_NODE_DATA_DIR to a "
        "folder with its files, or FL_NODE_MNIST_URL to a mirror"
    )


def _cause(error: Exception) -> str:
    if isinstance(error, requests.ConnectionError):
        return "can't be reached"
    return str(error)


class _Bound:
    """Ends a download of too many bytes; pooch reports to it as to a progress bar."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._received = 0
        self.total = 0

    def update(self, count: int) -> None:
        self._received += count
        if max(self._received, self.total) > MAX_FILE_BYTES:
            raise DataError(f"{self._url} has more than {MAX_FILE_BYTES} bytes")

    def reset(self) -> None:
        self._received = 0

    def close(self) -> None:
        pass


def _fetch(url: str, path: Path, name: str, report: Report) -> None:
    """Download a file of MNIST; it appears at its path only if its uncompressed content is MNIST's."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    report(f"downloading {url}")
    downloader = pooch.HTTPDownloader(progressbar=_Bound(url), timeout=(5, 30))
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        pooch.retrieve(url, None, partial.name, partial.parent, downloader=downloader)
        _verify(_unzip(partial.read_bytes(), name), name, url)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _unzip(compressed: bytes, name: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(compressed)) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}.gz is not a gzip file: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{name} has more than {MAX_FILE_BYTES} bytes")
    return content


def _digits() -> DataSet:
    # As scikit-learn's load_digits reads them, without half a second to import scikit-learn.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed", name="sklearn")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    small, labels = table[:, :-1], table[:, -1].astype(np.int64)
    # 8 × 8 pixels of 0 to 16 become 24 × 24 of 0 to 255 with a margin of 2, as large as MNIST's.
    grey = np.rint(small.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.pad(grey.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    order = permutation(len(images), 0)
    train, test = order[:-DIGITS_TEST], order[-DIGITS_TEST:]
    return DataSet("digits", "scikit-learn", images[train], labels[train], images[test], labels[test])
