"""`studio.image_sandbox`, but for files that do to it what a fault in a reader's C code would.

Takes the same settings. Files that begin with one of ``FAILURES`` are such.
"""

import ctypes
import os
import struct
from typing import Any, Final

from studio import image_decoder, image_sandbox

FAILURES: Final = {
    "crash": b"FAIL crash",
    "hang": b"FAIL hang",
    "sleep": b"FAIL sleep",
    "leave": b"FAIL leave",
    "eat": b"FAIL eat",
    "lie": b"FAIL lie",
    "chatter": b"FAIL chatter",
}


def fail(data: bytes) -> None:
    """Fail as the file's beginning says."""
    failure = next((name for name, start in FAILURES.items() if data.startswith(start)), "")
    if failure == "crash":
        ctypes.string_at(0)
    elif failure == "hang":
        while True:
            pass
    elif failure == "sleep":
        os.read(os.pipe()[0], 1)
    elif failure == "leave":
        os._exit(3)
    elif failure == "eat":
        bytearray(1 << 40)
    elif failure == "lie":  # an image larger than any that was allowed
        os.write(3, struct.pack(">QQ", 2, 3 << 60) + b"{}")
    elif failure == "chatter":
        os.write(1, b"libimage: this file is odd\n")


def decode(data: bytes, **options: Any) -> Any:
    """Decode an image, unless its file fails."""
    fail(data)
    whole = data.partition(b"|")[2] if data.startswith(b"FAIL") else data
    return image_decoder.decode(whole, **options)


if __name__ == "__main__":
    image_sandbox.main(decode)
