"""A file that is written is whole, or it is the one that was there before."""

import pytest

from raffm_ray.basics.files import write_atomically


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"the old content")

    def fails(self, content: bytes) -> int:
        with open(self, "wb") as file:
            file.write(content[:3])
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fails)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"the new content")
    assert path.read_bytes() == b"the old content"
