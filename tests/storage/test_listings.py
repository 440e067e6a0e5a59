"""The listing of an archive, read by itself: what it opens, and how much may follow its end."""

import gzip
import io
import tarfile
from contextlib import ExitStack

import pytest

from certiqa.storage.listings import DRAINED, DamagedError, entries


def tar_of(**files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_padding_behind_a_tar_is_read_to_a_limit(tmp_path):
    archive = tmp_path / "a.tar.gz"
    packed = tar_of(a=b"one", b=b"two")
    archive.write_bytes(gzip.compress(packed + bytes(DRAINED // 2), compresslevel=1))
    with ExitStack() as stack:
        assert [(entry.name, entry.size, entry.fault) for entry in entries(archive, stack)] == [
            ("a", 3, None),
            ("b", 3, None),
        ]
    archive.write_bytes(gzip.compress(packed + bytes(DRAINED + 1), compresslevel=1))
    with ExitStack() as stack:
        listing = entries(archive, stack)
        assert [next(listing).name, next(listing).name] == ["a", "b"]
        with pytest.raises(DamagedError, match="goes on behind its end"):
            next(listing)
