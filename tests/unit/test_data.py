"""Where MNIST is looked for and that its content is verified, with small made-up files in its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_node.data import datasets, loading, partition
from fl_node.data.datasets import DataSet
from fl_node.errors import DataError, PlanError
from fl_node.plan import loading as plans
from fl_node.plan.data_sets import DATA_SIZES
from tests.helpers.command_line import FlNode, in_process

TRAIN, TEST = 7, 3


def idx(values: np.ndarray) -> bytes:
    """Return an array in the IDX format of the MNIST files."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def made_up() -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    content = {}
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        content[f"{name}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), np.uint8))
        content[f"{name}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8))
    return content


FILES = made_up()
FIRST = next(iter(FILES))


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files of a few images have the digests that MNIST's should have, and the user's cache is empty."""
    for name in ("FL_NODE_DATA_DIR", "FL_NODE_MNIST_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FL_NODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "MNIST_SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in FILES.items()})


def write(folder: Path, *, compressed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        path = folder / (f"{name}.gz" if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
    return folder


def assert_whole(dataset: DataSet) -> None:
    assert dataset.name == "mnist"
    assert dataset.train_images.shape == (TRAIN, 28, 28)
    assert dataset.test_images.shape == (TEST, 28, 28)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_images.tobytes() == FILES["train-images-idx3-ubyte"][16:]
    assert dataset.train_labels.tolist() == list(range(TRAIN))
    assert dataset.test_labels.dtype == np.int64


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A server on loopback, its folder, and the environment that names it."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("FL_NODE_MNIST_URL", f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
def test_a_folder_with_the_files_is_taken_compressed_or_not(tmp_path: Path, compressed: bool) -> None:
    folder = write(tmp_path / "mine", compressed=compressed)
    dataset = datasets.load("mnist", folder)
    assert_whole(dataset)
    assert dataset.source == str(folder)
    assert not (tmp_path / "cache").exists()


def test_files_that_somebody_compressed_anew_will_do(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1, mtime=5))
    assert_whole(datasets.load("mnist", folder))


def test_the_environment_names_a_folder_and_an_option_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FL_NODE_DATA_DIR", str(write(tmp_path / "environment")))
    assert datasets.load("mnist").source == str(tmp_path / "environment")
    assert datasets.load("mnist", write(tmp_path / "option")).source == str(tmp_path / "option")


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_with_another_content_is_named(tmp_path: Path, name: str, compressed: bool) -> None:
    folder = write(tmp_path / "mine", compressed=compressed)
    changed = FILES[name][:-1] + b"\xff"
    path = folder / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(changed) if compressed else changed)
    with pytest.raises(DataError) as caught:
        datasets.load("mnist", folder)
    assert str(caught.value).startswith(f"{path} is not MNIST's {name}: ")
    assert hashlib.sha256(changed).hexdigest()[:16] in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "mine")
    (folder / f"{name}.gz").unlink()
    with pytest.raises(DataError, match=rf"mine has neither {name}\.gz nor {name}"):
        datasets.load("mnist", folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        datasets.load("mnist", tmp_path / "nowhere")


def damaged(content: bytes) -> list[bytes]:
    """Return what may have become of a compressed file."""
    whole = gzip.compress(content)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    junk = whole[:10] + b"\xff" * 50
    return [b"", b"<html>log in</html>", whole[: len(whole) // 2], whole[:-4], bytes(flipped), junk]


@pytest.mark.parametrize("number", range(6))
def test_a_damaged_file_is_named(tmp_path: Path, number: int) -> None:
    folder = write(tmp_path / "mine")
    (folder / f"{FIRST}.gz").write_bytes(damaged(FILES[FIRST])[number])
    with pytest.raises(DataError, match=FIRST):
        datasets.load("mnist", folder)


def test_what_is_downloaded_is_verified_and_kept_in_the_cache(tmp_path: Path, mirror: Path) -> None:
    write(mirror)
    lines: list[str] = []
    dataset = datasets.load("mnist", report=lines.append)
    assert_whole(dataset)
    cache = tmp_path / "cache" / "data" / "mnist"
    assert dataset.source == str(cache) == str(datasets.cache_dir())
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    assert [line.rpartition("/")[2] for line in lines] == [f"{name}.gz" for name in FILES]

    for path in mirror.iterdir():
        path.unlink()
    assert_whole(datasets.load("mnist", report=lines.append))
    assert len(lines) == len(FILES)


def test_a_download_that_was_interrupted_goes_on_with_what_is_missing(tmp_path: Path, mirror: Path) -> None:
    write(mirror)
    datasets.load("mnist")
    (datasets.cache_dir() / f"{FIRST}.gz").unlink()
    lines: list[str] = []
    assert_whole(datasets.load("mnist", report=lines.append))
    assert [line.rpartition("/")[2] for line in lines] == [f"{FIRST}.gz"]


@pytest.mark.parametrize("number", range(6))
def test_a_damaged_download_is_refused_and_leaves_nothing(mirror: Path, number: int) -> None:
    write(mirror)
    (mirror / f"{FIRST}.gz").write_bytes(damaged(FILES[FIRST])[number])
    with pytest.raises(DataError) as caught:
        datasets.load("mnist")
    assert "MNIST can't be downloaded" in str(caught.value)
    assert FIRST in str(caught.value)
    assert list(datasets.cache_dir().iterdir()) == []


def test_a_changed_download_is_refused_and_leaves_nothing(mirror: Path) -> None:
    write(mirror)
    (mirror / f"{FIRST}.gz").write_bytes(gzip.compress(FILES[FIRST][:-1] + b"\xff"))
    with pytest.raises(DataError, match=f"is not MNIST's {FIRST}"):
        datasets.load("mnist")
    assert list(datasets.cache_dir().iterdir()) == []


@pytest.mark.parametrize("compressed", [True, False], ids=["sent", "unpacked"])
def test_a_download_that_is_too_large_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, mirror: Path, compressed: bool
) -> None:
    write(mirror)
    monkeypatch.setattr(datasets, "MAX_FILE_BYTES", 1000)
    content = np.random.default_rng(1).bytes(5000) if compressed else bytes(500_000)
    (mirror / f"{FIRST}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match="has more than 1000 bytes"):
        datasets.load("mnist")
    assert list(datasets.cache_dir().iterdir()) == []


def test_a_mirror_that_lacks_a_file_is_named_with_what_to_do(mirror: Path) -> None:
    write(mirror)
    (mirror / f"{FIRST}.gz").unlink()
    with pytest.raises(DataError) as caught:
        datasets.load("mnist")
    message = str(caught.value)
    assert "404" in message
    for name in ("--data-dir", "FL_NODE_DATA_DIR", "FL_NODE_MNIST_URL"):
        assert name in message
    assert list(datasets.cache_dir().iterdir()) == []


def test_a_mirror_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    monkeypatch.setenv("FL_NODE_MNIST_URL", url)
    with pytest.raises(DataError, match=f"{url} can't be reached"):
        datasets.load("mnist")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, mirror: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="set FL_NODE_CACHE to another folder"):
        datasets.load("mnist")


def test_the_digits_that_scikit_learn_ships_look_like_mnist() -> None:
    digits = datasets.load("digits")
    assert (len(digits.train_images), len(digits.test_images)) == DATA_SIZES["digits"]
    for images, labels in (
        (digits.train_images, digits.train_labels),
        (digits.test_images, digits.test_labels),
    ):
        assert images.shape == (len(labels), 28, 28)
        assert images.dtype == np.uint8
        assert images.max() == 255
        assert not images[:, :2].any()
        assert not images[:, :, -2:].any()
        assert set(labels.tolist()) == set(range(10))


def test_the_digits_are_always_in_the_same_order() -> None:
    digits = datasets.load("digits")
    content = b"".join(a.tobytes() for a in (digits.train_images, digits.train_labels, digits.test_labels))
    assert hashlib.sha256(content).hexdigest()[:16] == "28f31231c72eb2ff"


def test_another_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="unknown data set 'cifar'; should be mnist or digits"):
        datasets.load("cifar")


# Images of one's own


def own_folder(folder: Path, side: int = 9, classes: int = 4, counts: tuple[int, int] = (40, 12)) -> Path:
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in zip(("train", "t10k"), counts, strict=True):
        images = rng.integers(0, 256, (count, side, side + 1), np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % classes))
    return folder


PLAN = {"name": "mine", "data": {"name": "folder"}, "model": {"name": "mlp"}, "training": {"epochs": 1}}


def own_plan(folder: Path, **settings: object) -> plans.Plan:
    plan = plans.validate(PLAN | {"data": {"name": "folder", **settings}}, "plan")
    return loading.complete(plan, loading.load(plan, folder))


def test_the_plan_says_what_a_folder_holds_and_needs_it_no_more(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    published = own_plan(folder)
    files = {key: datasets.FOLDER_FILES[key] for key in datasets.FOLDER_FILES}
    hashes = {}
    for key, name in files.items():
        path = folder / name if "labels" in name else folder / f"{name}.gz"
        content = path.read_bytes()
        hashes[key] = hashlib.sha256(gzip.decompress(content) if path.suffix else content).hexdigest()
    facts = {"all_train": 40, "all_test": 12, "train": 40, "test": 12, "classes": 4, "size": [9, 10]}
    content = json.loads(published.to_bytes())["data"]
    assert content == {"name": "folder", "partition": "equal", **facts, **hashes}
    assert plans.from_bytes(published.to_bytes()) == published
    assert [partition.shard_size(published, node_id) for node_id in (1, 2)] == [20, 20]


def test_a_plan_that_was_not_told_what_the_folder_holds_is_not_published() -> None:
    plan = plans.validate(PLAN, "plan")
    with pytest.raises(PlanError, match=r"lacks .*data\.all_train, .*data\.train_images_sha256"):
        plans.from_bytes(plan.to_bytes())


def test_some_of_the_images_can_be_taken_and_some_held_out(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine")
    plan = own_plan(folder, train=30, test=5, validation=10)
    assert (plan.data.train, plan.data.test, plan.data.available[0]) == (30, 5, 40)
    assert own_plan(folder, validation=10).data.train == 30
    with pytest.raises(PlanError, match=r"data\.train: should be at most 40, the size of"):
        own_plan(folder, train=41)


def test_a_plan_may_know_more_classes_than_a_folder_has_labels_and_not_fewer(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine", classes=4)
    assert own_plan(folder, classes=6).data.class_count == 6
    with pytest.raises(DataError, match=r"data\.classes is 4, the plan requires 3"):
        own_plan(folder, classes=3)
    with pytest.raises(DataError, match=r"data\.size is \(9, 10\), the plan requires \(9, 9\)"):
        own_plan(folder, size=[9, 9])


@pytest.mark.parametrize("key", list(datasets.FOLDER_FILES))
def test_a_folder_with_another_content_is_refused_with_the_file_and_both_hashes(tmp_path: Path, key: str) -> None:
    folder = own_folder(tmp_path / "mine")
    published = own_plan(folder)
    (path,) = folder.glob(f"{datasets.FOLDER_FILES[key]}*")
    content = gzip.decompress(path.read_bytes()) if path.suffix else path.read_bytes()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(gzip.compress(damaged) if path.suffix else damaged)
    digest = hashlib.sha256(damaged).hexdigest()[:16]
    planned = getattr(published.data.source, key)[:16]
    message = f"^{path} is not the plan's file: .*{digest}…, the plan requires {planned}…$"
    with pytest.raises(DataError, match=message):
        loading.load(published, folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-labels-idx1-ubyte", b"", "t10k-labels-idx1-ubyte is empty"),
        (
            "t10k-labels-idx1-ubyte",
            idx(np.zeros((3, 3), np.uint8)),
            "starts with 00000802, should start with 00000801",
        ),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(12, np.uint8))[:-1], "should have 12 bytes after its 8-byte header"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(11, np.uint8)), "has 11 labels for 12 images"),
        (
            "t10k-images-idx3-ubyte.gz",
            gzip.compress(idx(np.zeros((12, 8, 8), np.uint8)), mtime=0),
            "differ in size: 9 × 10 and 8 × 8",
        ),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x0d\3" + bytes(12), mtime=0), "starts with 00000d03"),
        ("t10k-images-idx3-ubyte.gz", b"not gzip", "can't be read: Not a gzipped file"),
        (
            "t10k-images-idx3-ubyte.gz",
            gzip.compress(bytes(999), mtime=0)[:-9],
            "can't be read: Compressed file ended",
        ),
        ("t10k-labels-idx1-ubyte", gzip.compress(bytes(9), mtime=0), "is a gzip file; rename it to .*ubyte.gz"),
        ("t10k-labels-idx1-ubyte", None, "has neither t10k-labels-idx1-ubyte.gz nor t10k-labels-idx1-ubyte"),
        ("t10k-labels-idx1-ubyte", Path, "t10k-labels-idx1-ubyte should be a file, not a folder"),
    ],
)
def test_what_is_wrong_with_a_folder_of_ones_own_is_said_and_not_that_it_is_not_mnist(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    folder = own_folder(tmp_path / "mine")
    (folder / name).unlink()
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is Path:
        (folder / name).mkdir()
    for ask in (own_plan, datasets.at_hand):
        with pytest.raises(DataError, match=message) as raised:
            ask(folder)
        assert "MNIST" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name, reason in (("nowhere", "No such file or directory"), ("file", "Not a directory")):
        for ask in (own_plan, datasets.at_hand):
            with pytest.raises(DataError, match=f"{name}: {reason}"):
                ask(tmp_path / name)


def test_bounds_that_depend_on_the_number_of_classes_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "mine", classes=13)
    attack = {"learners": [1], "data": "backdoor", "target": 12}
    plan = plans.validate(
        PLAN | {"data": {"name": "folder", "partition": "labels", "labels_each": 13}, "attack": attack}, "p"
    )
    assert loading.complete(plan, loading.load(plan, folder)).data.class_count == 13
    more = {"data": {"name": "folder", "partition": "labels", "labels_each": 14}, "attack": attack | {"target": 13}}
    plan = plans.validate(PLAN | more, "p")
    with pytest.raises(PlanError) as raised:
        loading.complete(plan, loading.load(plan, folder))
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        "attack.target: should be at most 12; there are 13 classes (is 13)",
        "data.labels_each: should be at most 13, the number of classes (is 14)",
    ]


def test_without_a_folder_the_plan_says_what_it_wants() -> None:
    with pytest.raises(DataError, match="set --data-dir or FL_NODE_DATA_DIR"):
        loading.load(plans.validate(PLAN, "plan"))


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_what_is_written_as_idx_is_read_as_it_was(height: int, width: int, labels: list[int], random: Random) -> None:
    images = np.frombuffer(random.randbytes(len(labels) * height * width), np.uint8).reshape(-1, height, width)
    with TemporaryDirectory() as name:
        for part in ("train", "t10k"):
            (Path(name) / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
            (Path(name) / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array(labels, np.uint8)))
        loaded = datasets.from_folder(Path(name), {})
    assert loaded.train_images.tobytes() == loaded.test_images.tobytes() == images.tobytes()
    assert loaded.train_images.shape == images.shape
    assert loaded.train_labels.tolist() == loaded.test_labels.tolist() == labels


# The command


@pytest.fixture
def fl_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[FlNode]:
    """Run ``fl-node`` in this process, in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    with in_process(monkeypatch, capsys) as run:
        yield run


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``fl-node data`` in a folder, and let it say at the end which of the slow modules it imported."""
    script = f"""
import sys
from fl_node.cli import app as cli
from fl_node.data import datasets as data
data.MNIST_SHA256 = {datasets.MNIST_SHA256!r}
sys.argv = ["fl-node", "data", *{arguments!r}]
try:
    cli.main()
finally:
    slow = {{"tensorflow", "keras", "web3", "eth", "sklearn", "ipfshttpclient"}}
    print("slow:", sorted(slow & set(sys.modules)), file=sys.stderr)
"""
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )


def test_the_command_says_where_the_files_are_for_whoever_copies_them(fl_node: FlNode, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    done = process(tmp_path, "--data-dir", "mine")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}\n", "slow: []\n")
    assert json.loads(fl_node("data", "--data-dir", folder, "--json").out) == {"folder": str(folder)}


def test_the_command_downloads_what_is_nowhere(mirror: Path, fl_node: FlNode) -> None:
    write(mirror)
    done = fl_node("data")
    assert done.out == f"{datasets.cache_dir()}\n"
    assert sorted(path.name for path in datasets.cache_dir().iterdir()) == sorted(f"{name}.gz" for name in FILES)


def test_the_command_refuses_a_folder_with_other_files(fl_node: FlNode, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    (folder / f"{FIRST}.gz").write_bytes(gzip.compress(b"another"))
    done = fl_node("data", "--data-dir", "mine")
    assert (done.code, done.out) == (3, "")
    assert f"is not MNIST's {FIRST}" in done.err


def test_the_command_takes_a_folder_of_ones_own_and_says_that_it_is_not_mnist(
    fl_node: FlNode, tmp_path: Path
) -> None:
    folder = own_folder(tmp_path / "mine")
    done = fl_node("data", "--data-dir", "mine")
    assert (done.code, done.out) == (0, f"{folder}\n")
    assert "note: these are your own images, not MNIST: 40 training and 12 test images of 9 × 10 pixels" in done.err
