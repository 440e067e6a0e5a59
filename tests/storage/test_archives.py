"""Archives that attack, archives that are damaged, and ordinary ones."""

import errno
import io
import random
import stat
import struct
import tarfile
import zipfile

import pytest

from certiqa.errors import UserError
from certiqa.storage import archives, files
from certiqa.storage.archives import extract

FILES = {
    "images/a.png": random.Random(1).randbytes(40_000),
    "images/b.png": b"b" * 5000,
    "mos.csv": b"",
    "ü/ß.txt": b"1",
}
KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
LIMITS = {"max_bytes": 10**6, "max_files": 50}


def tar_member(name, content=b"x", **facts):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def zip_member(name, content=b"x", mode=None):
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name  # past what ZipInfo does to names
    info.external_attr = (mode or 0) << 16
    return info, content


def make(path, members=()):
    """Write an archive of FILES and these members; a tuple of tar_member or zip_member, or (name, content)."""
    kind = path.name.split(".", 1)[1]
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in [*FILES.items(), *members]:
                file.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{kind[4:]}") as file:
        file.addfile(tar_member("./", b"", type=tarfile.DIRTYPE)[0])
        for name, content in [*FILES.items(), *members]:
            info, content = (name, content) if isinstance(name, tarfile.TarInfo) else tar_member(name, content)
            file.addfile(info, content)
    return path


def refused(archive, match, folder=None, **options):
    folder = folder or archive.parent / "goal"
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as caught:
        extract(archive, folder, **{**LIMITS, **options})
    assert str(archive) in str(caught.value)
    assert sorted(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_comes_out_as_it_went_in(tmp_path, kind):
    archive, folder = make(tmp_path / f"data.{kind}", [("empty/", b"")] if kind == "zip" else ()), tmp_path / "goal"
    assert extract(archive, str(folder), **LIMITS) == folder
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES
    assert (folder / "empty").is_dir() == (kind == "zip")
    assert sorted(tmp_path.iterdir()) == sorted([archive, folder])
    (tmp_path / "ordinary").mkdir()
    assert folder.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_members_choose_files_and_folders_and_only_they_count(tmp_path, kind):
    archive = make(tmp_path / f"data.{kind}")
    extract(archive, tmp_path / "goal", members=["images/b.png", "ü"], max_bytes=5001, max_files=50)
    found = sorted(path.relative_to(tmp_path / "goal").as_posix() for path in (tmp_path / "goal").rglob("*.*"))
    assert found == ["images/b.png", "ü/ß.txt"]
    refused(archive, "has no 'image'; it is another one", tmp_path / "other", members=["image"])


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    archive, folder = make(tmp_path / "data.zip"), tmp_path / "goal"
    folder.mkdir()
    assert (extract(archive, folder, **LIMITS) / "mos.csv").exists()
    with pytest.raises(UserError, match=r"goal' is there already and not empty; move it away or give another"):
        extract(archive, folder, **LIMITS)
    with pytest.raises(UserError, match="there already"):
        extract(archive, archive, **LIMITS)


NAMES = {
    "/etc/passwd": "absolute path",
    "../out.txt": "leads out of the folder",
    "images/../../out.txt": "leads out of the folder",
    "C:/out.txt": "a drive",
    "c:out.txt": "a drive",
    "..\\out.txt": "a backslash",
    "images\\..\\..\\out.txt": "a backslash",
    "\\\\host\\share": "a backslash",
    "new\nline": "no proper name",
    "images/A.PNG": "where case does not count",
    "IMAGES/a.png": "where case does not count",
    "images/a.png": "where case does not count",
    "u\u0308/ß.txt": "where case does not count",  # the ü of two letters
    "mos.csv/inside": "where case does not count",
    "IMAGES": "where case does not count",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_should_not_be_there_refuses_the_archive(tmp_path, kind, name):
    member = zip_member(name) if kind == "zip" else tar_member(name)
    refused(make(tmp_path / f"data.{kind}", [member]), NAMES[name])
    refused(tmp_path / f"data.{kind}", NAMES[name], members=["mos.csv"])


def test_a_name_that_hides_its_end_behind_a_nul_is_refused(tmp_path):
    archive = make(tmp_path / "data.zip", [("harmlessX.exe", b"x")])
    archive.write_bytes(archive.read_bytes().replace(b"harmlessX.exe", b"harmless\0.exe"))
    refused(archive, "no proper name")


@pytest.mark.parametrize(
    "facts",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc"},
        {"type": tarfile.SYMTYPE, "linkname": "images/a.png"},
        {"type": tarfile.LNKTYPE, "linkname": "../../out"},
        {"type": tarfile.LNKTYPE, "linkname": "images/a.png"},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
        {"type": tarfile.BLKTYPE},
        {"type": tarfile.FIFOTYPE},
    ],
)
def test_links_and_devices_of_a_tar_are_refused(tmp_path, facts):
    link = facts["type"] in (tarfile.SYMTYPE, tarfile.LNKTYPE)
    refused(make(tmp_path / "data.tar", [tar_member("evil", b"", **facts)]), "is a link" if link else "is a device")


@pytest.mark.parametrize(
    ("kind", "match"), [(stat.S_IFLNK, "is a link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "device")]
)
def test_links_and_devices_of_a_zip_are_refused(tmp_path, kind, match):
    refused(make(tmp_path / "data.zip", [zip_member("evil", b"/etc", mode=kind | 0o777)]), match)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_large_or_too_many_is_refused(tmp_path, kind):
    archive = make(tmp_path / f"data.{kind}", [("zeros", bytes(2_000_000))])
    refused(archive, r"more than the 1\.0 MB that are allowed")
    refused(archive, "more than 3 entries", max_bytes=10**7, max_files=3)


def test_a_tar_that_claims_what_it_does_not_have_is_refused(tmp_path):
    archive = tmp_path / "data.tar"
    info, _ = tar_member("huge")
    info.size = 10**12
    archive.write_bytes(info.tobuf())
    refused(archive, "that are allowed")
    refused(archive, "damaged", max_bytes=10**13)
    for info.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):  # they want to be read into memory
        archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
        refused(archive, "a header of 1000000000000 bytes")
    info.type, info.size = tarfile.REGTYPE, -512
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    refused(archive, "data.tar")


@pytest.mark.parametrize("claimed", [4000, 6000])
def test_a_zip_that_holds_other_than_it_claims_is_refused(tmp_path, claimed):
    archive = make(tmp_path / "data.zip")
    content = archive.read_bytes()
    size = struct.pack("<L", 5000)
    assert content.count(size) == 2  # in the listing and before the file
    archive.write_bytes(content.replace(size, struct.pack("<L", claimed)))
    refused(archive, "damaged")


def test_what_goes_on_beyond_its_claim_is_left_at_that(tmp_path, monkeypatch):
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size=-1):
            assert Endless.given < 10**6
            Endless.given += size
            return bytes(size)

    archive = make(tmp_path / "data.zip")
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: Endless())
    refused(archive, "does not have the 40000 bytes it claims")


def test_an_encrypted_zip_is_refused(tmp_path):
    archive = make(tmp_path / "data.zip")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, "is encrypted")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, "end"])
def test_what_is_cut_short_is_refused(tmp_path, kind, share):
    archive = make(tmp_path / f"data.{kind}")
    content = archive.read_bytes()
    # the last byte of a tar's padding is no loss: cut before its end marker
    keep = (
        (tarfile_end(archive) if kind == "tar" else len(content) - 1) if share == "end" else int(share * len(content))
    )
    archive.write_bytes(content[:keep])
    refused(archive, "is damaged, cut short or of an unknown kind.*fetch it again")


def tarfile_end(archive):
    with tarfile.open(archive) as file:
        file.getmembers()
        return file.offset


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_flipped_bit_is_noticed(tmp_path, kind):
    archive = make(tmp_path / f"data.{kind}")
    content = bytearray(archive.read_bytes())
    content[20_000] ^= 1  # in the noise of a.png, which no compression shortens
    archive.write_bytes(content)
    refused(archive, "damaged")


def test_a_header_that_does_not_parse_is_not_the_end(tmp_path):
    archive = make(tmp_path / "data.tar")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"mos.csv", b"moz.csv"))  # its checksum is wrong now
    refused(archive, "does not end as a tar does")


def test_what_is_no_archive_or_not_there_is_said(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"<html>no</html>" * 100)
    refused(tmp_path / "a.zip", "unknown kind")
    refused(tmp_path / "b.zip", "cannot unpack .*No such file")


def test_too_little_space_is_noticed_beforehand_and_on_the_way(tmp_path, monkeypatch):
    archive = make(tmp_path / "data.tar.gz")
    with monkeypatch.context() as patch:
        patch.setattr(files, "free_bytes", lambda folder: 25_000)
        refused(archive, "unpacking .* needs 45 kB and .* has 25 kB free: 20 kB missing")

    class Full(io.BytesIO):
        def write(self, block):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archives, "open", lambda path, mode: path.touch() or Full(), raising=False)
        refused(archive, "cannot unpack .*No space left on device.*nothing was left behind")
    extract(archive, tmp_path / "goal", **LIMITS)


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    archive = make(tmp_path / "data.zip")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipExtFile, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(archive, tmp_path / "goal", **LIMITS)
    assert list(tmp_path.iterdir()) == [archive]
