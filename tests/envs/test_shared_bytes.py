"""Arrays of a worker come through memory that both processes see, bit for bit."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from pi0.ript.envs.shared_bytes import SharedBytes


def views(*arrays):
    return [memoryview(np.ascontiguousarray(array)).cast("B") for array in arrays]


def test_what_is_written_last_is_read_at_any_size():
    shared = SharedBytes()
    for size in (3, 50_000, 10, 0, 200_000):
        first, second = np.arange(size, dtype=np.float32), np.arange(2 * size, dtype=np.uint8)
        sizes = shared.write(views(first, second))
        assert sizes == [4 * size, 2 * size]
        one, two = shared.read(sizes)
        np.testing.assert_array_equal(np.frombuffer(one, np.float32), first)
        np.testing.assert_array_equal(np.frombuffer(two, np.uint8), second)
    shared.close()


def test_what_was_read_stays_when_it_is_written_again():
    shared = SharedBytes()
    (kept,) = shared.read(shared.write(views(np.full(5, 7, np.uint8))))
    shared.write(views(np.zeros(5, np.uint8)))
    assert bytes(kept) == bytes([7] * 5)
    shared.close()


def test_another_process_sees_it_grow():
    """The child writes more than there was when the parent mapped it."""
    shared = SharedBytes()
    assert shared.read(shared.write(views(np.zeros(4, np.uint8)))) == [bytearray(4)]
    code = (
        "import sys, numpy as np; from pi0.ript.envs.shared_bytes import SharedBytes\n"
        "SharedBytes(int(sys.argv[1])).write([memoryview(np.arange(100000, dtype=np.int32)).cast('B')])"
    )
    command = [sys.executable, "-c", code, str(shared.file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, pass_fds=[shared.file], env=environment, check=True)
    (read,) = shared.read([400_000])
    np.testing.assert_array_equal(np.frombuffer(read, np.int32), np.arange(100_000))
    shared.close()


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="elsewhere the memory is taken when it is written"
)
def test_memory_that_there_is_not_is_an_error_where_it_is_asked_for():
    shared = SharedBytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            shared.write(views(np.zeros(100_000, np.uint8)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert shared.read(shared.write(views(np.ones(10, np.uint8)))) == [bytearray([1] * 10)]
    shared.close()
