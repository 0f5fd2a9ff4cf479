"""`studio.decoder` as it is, but for files that do to it what a fault in a reader's C code would.

Takes the settings that `studio.apart` gives. Files that begin with one of ``ILLS`` are such.
"""

import ctypes
import os
from typing import Any, Final

from studio import decoder

ILLS: Final = {
    "crash": b"ILL crash",
    "hang": b"ILL hang",
    "sleep": b"ILL sleep",
    "leave": b"ILL leave",
    "eat": b"ILL eat",
    "lie": b"ILL lie",
    "chatter": b"ILL chatter",
}


def suffer(data: bytes) -> None:
    """Do what the file's beginning says."""
    ill = next((name for name, start in ILLS.items() if data.startswith(start)), "")
    if ill == "crash":
        ctypes.string_at(0)
    elif ill == "hang":
        while True:
            pass
    elif ill == "sleep":
        os.read(os.pipe()[0], 1)
    elif ill == "leave":
        os._exit(3)
    elif ill == "eat":
        bytearray(1 << 40)
    elif ill == "lie":  # a picture larger than any that was allowed
        os.write(3, decoder.REPLY.pack(decoder.FOUND, 1 << 30, 1 << 30))
    elif ill == "chatter":
        os.write(1, b"libpicture: this file is odd\n")


def main() -> None:
    """Stand where `studio.decoder` does."""
    inside = vars(decoder)["decode"]

    def decode(data: bytes, **how: Any) -> Any:
        suffer(data)
        return inside(data.partition(b"|")[2] if data.startswith(b"ILL") else data, **how)

    vars(decoder)["decode"] = decode
    decoder.main()


if __name__ == "__main__":
    main()
