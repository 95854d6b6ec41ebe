"""The recipe of boxes, from an image that has the shape of Ubuntu's cloud images but is small and does not boot."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.helpers.checkout import ROOT

START = 4096
"""The first sector of the root partition."""
TOOLS = ("qemu-img", "debugfs", "mke2fs", "sfdisk")

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin") is None for tool in TOOLS),
    reason=f"needs {', '.join(TOOLS)} (Debian, Ubuntu: apt-get install qemu-utils e2fsprogs fdisk)",
)


def call(*command: str | Path, stdin: str = "") -> str:
    ended = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small partition and the root file system, as on the cloud images."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "root" / "var" / "lib").mkdir(parents=True)
    disk, part = folder / "disk", folder / "part"
    call("/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", folder / "root", part, "16M")
    with disk.open("wb") as file:
        file.truncate(20 << 20)
        file.seek(START * 512)
        file.write(part.read_bytes())
    call("/usr/sbin/sfdisk", "--quiet", disk, stdin=f"label: gpt\nstart=2048, size=2048\nstart={START}, size=32768\n")
    call("qemu-img", "convert", "-O", "qcow2", disk, folder / "cloud.img")
    return folder / "cloud.img"


def box(image: Path, folder: Path, provider: str, *options: str) -> Path:
    """Build a box and return the folder of its files."""
    built = folder / f"{provider}.box"
    call(ROOT / "vagrant" / "cloud-box", f"--provider={provider}", f"--image={image}", f"--output={built}", *options)
    with tarfile.open(built) as tar:
        tar.extractall(folder / provider, filter="data")
    return folder / provider


def seed(disk: Path, folder: Path) -> dict[str, object]:
    """Return what cloud-init is told by the disk."""
    raw = folder / "raw"
    call("qemu-img", "convert", "-O", "raw", disk, raw)
    assert raw.stat().st_size >= 20 << 30
    where = f"{raw}?offset={START * 512}"
    assert "instance-id" in call("/usr/sbin/debugfs", "-R", "cat /var/lib/cloud/seed/nocloud/meta-data", where)
    call("/usr/sbin/e2fsck", "-fn", where)
    text = call("/usr/sbin/debugfs", "-R", "cat /var/lib/cloud/seed/nocloud/user-data", where)
    raw.unlink()
    assert text.startswith("#cloud-config\n")
    found: dict[str, object] = yaml.safe_load(text)
    return found


def test_each_provider_gets_a_disk_that_creates_user_vagrant_at_its_first_boot(image: Path, tmp_path: Path) -> None:
    public = (ROOT / "vagrant/rootfs/usr/local/share/fl-testbed/vagrant.pub").read_text().split()
    for provider, disk in (("libvirt", "box.img"), ("virtualbox", "disk.vmdk"), ("vmware_desktop", "disk.vmdk")):
        folder = box(image, tmp_path, provider)
        assert json.loads((folder / "metadata.json").read_text())["provider"] == provider
        told = seed(folder / disk, tmp_path)
        users = told["users"]
        assert isinstance(users, list)
        assert [user["name"] for user in users] == ["vagrant"]
        assert users[0]["ssh_authorized_keys"][0].split()[:2] == public[:2]
        assert users[0]["lock_passwd"] is True
        assert told["ssh_pwauth"] is False


def test_virtualbox_gets_a_description_that_fits_the_disk(image: Path, tmp_path: Path) -> None:
    folder = box(image, tmp_path, "virtualbox")
    tree = ElementTree.parse(folder / "box.ovf")
    ovf = "{http://schemas.dmtf.org/ovf/envelope/1}"
    file, disk = tree.find(f".//{ovf}File"), tree.find(f".//{ovf}Disk")
    assert file is not None and disk is not None
    assert file.get(f"{ovf}href") == "disk.vmdk"
    assert int(file.get(f"{ovf}size", 0)) == (folder / "disk.vmdk").stat().st_size
    information = json.loads(call("qemu-img", "info", "--output=json", folder / "disk.vmdk"))
    assert int(disk.get(f"{ovf}capacity", 0)) == information["virtual-size"]
    assert information["format-specific"]["data"]["create-type"] == "streamOptimized"
    assert "base_mac" in (folder / "Vagrantfile").read_text()


def test_vmware_on_arm64_gets_the_system_of_its_processor(image: Path, tmp_path: Path) -> None:
    folder = box(image, tmp_path, "vmware_desktop", "--architecture=arm64")
    assert 'guestOS = "arm-ubuntu-64"' in (folder / "fl-testbed.vmx").read_text()
    assert 'fileName = "disk.vmdk"' in (folder / "fl-testbed.vmx").read_text()


def test_what_can_not_be_built_is_one_line(image: Path, tmp_path: Path) -> None:
    good = hashlib.sha256(image.read_bytes()).hexdigest()
    box(image, tmp_path, "libvirt", f"--sha256={good.upper()}")
    (tmp_path / "text").write_text("no image")
    for options, words in (
        ([f"--sha256={'0' * 64}", f"--image={image}"], "does not have the SHA-256"),
        ([f"--image={tmp_path}/none"], "no such file"),
        ([f"--image={tmp_path}/text"], "has no partitions"),
        (["--release=19.10"], "should be 20.04, 22.04 or 24.04"),
        (["--provider=hyperv"], "--provider should be"),
        (["--provider=virtualbox", "--architecture=arm64"], "use --provider=vmware_desktop"),
    ):
        ended = subprocess.run(
            [ROOT / "vagrant" / "cloud-box", "--provider=libvirt", *options, f"--output={tmp_path}/x.box"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 1, options
        assert words in ended.stderr.strip().splitlines()[-1]
        assert not (tmp_path / "x.box").exists()
