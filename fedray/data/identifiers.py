"""Keyed hashes of identifiers: what a site makes of its patients' numbers before anything is compared.

    HMAC-SHA256(key, "fedray linkage" | salt | identifier)

The key is the sites' own: they agree on it without the operator, and it lies in a file at each site.
Who has no key can do nothing with a hash but see whether two are equal. Who has it can try every identifier
there is against a list of hashes (a dictionary attack: national numbers are few), so no site may get another
site's list, and the server, which gets all of them, may not get the key. The salt is public and names the
study, so that the hashes of two studies under one key cannot be compared.

An identifier is one column or several (number; or name, date of birth, sex), written one way first:
  texts: Unicode NFKC, lower case (casefold), then letters and digits only, so that "AB-12 3" is "ab123";
         leading zeros and accents stay, for they tell patients apart
  whole numbers, also where a table reads them as 12.0: their digits; dates: YYYYMMDD
Blank, NaN and what holds no letter or digit is missing. A table of text should be read as text: 007 as a
number is 7, and 007 as a text is 007.
"""

import datetime
import hashlib
import hmac
import math
import numbers
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedray.errors import DataError

HASH_BYTES = 32
MIN_KEY_BYTES = 32  # of a key drawn at random: as many as the hash has
_PURPOSE = b"fedray linkage"
_BETWEEN = "\x1f"  # the unit separator: no normalised part holds it


@dataclass(frozen=True, slots=True)
class LinkageKey:
    """Where a site finds the shared key: a file on its own machine, or bytes, which are for simulation.

    Bytes travel with the data set, so whoever makes it holds them.
    """

    source: bytes | str

    def read(self) -> bytes:
        """Return the key. Raises DataError where there is none, or a short one; never with its content."""
        if isinstance(self.source, bytes):
            found, where = self.source, "the given key"
        else:
            where = f"the key file {Path(self.source).name}"
            try:
                found = Path(self.source).read_bytes()
            except OSError as error:
                raise DataError(f"{where} cannot be read ({error.strerror}). Fix: put the sites' shared key "
                                "there, readable to this process alone") from None
        if len(found) < MIN_KEY_BYTES:
            raise DataError(f"{where} has {len(found)} bytes, a key has {MIN_KEY_BYTES} or more. Fix: "
                            "`openssl rand 32 > FILE` at one site, and hand it to the others in confidence")
        return found

    def __repr__(self) -> str:
        return "LinkageKey(bytes)" if isinstance(self.source, bytes) else f"LinkageKey({self.source!r})"


def normalise(value: Any) -> str:
    """Return an identifier's one way of writing; an empty text where it is missing."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, datetime.date):
        return f"{value.year:04d}{value.month:02d}{value.day:02d}"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        return str(int(number)) if number.is_integer() else _signs(repr(number)) * math.isfinite(number)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", str(value)).casefold())
    return _signs(text)


def _signs(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def keyed_hash(parts: Sequence[str], key: bytes, salt: str) -> bytes:
    """Return the hash of a record whose identifier has these normalised parts."""
    told = _BETWEEN.join(parts).encode()
    return hmac.new(key, _BETWEEN.encode().join((_PURPOSE, salt.encode(), told)), hashlib.sha256).digest()


def hashed(site: str, columns: Sequence[Sequence[Any]], key: bytes, salt: str) -> Tensor:
    """Return one hash a row, uint8 (rows, 32), for identifiers given by column.

    Raises DataError, with counts alone, where identifiers are missing or come twice.
    """
    rows = [[normalise(value) for value in row] for row in zip(*columns, strict=True)]
    missing = sum(not all(row) for row in rows)
    if missing:
        raise DataError(f"site {site}: {missing} of {len(rows)} rows have no identifier. Fix: fill it, or "
                        "leave these rows out before linking")
    found = [keyed_hash(row, key, salt) for row in rows]
    twice = len(found) - len(set(found))
    if twice:
        raise DataError(f"site {site}: {twice} of {len(rows)} rows have an identifier that another row has. "
                        "Fix: one row a record: join or drop them before linking")
    return as_table(found)


def as_table(hashes: Sequence[bytes]) -> Tensor:
    """Return hashes as a table, uint8 (rows, 32)."""
    if not hashes:
        return torch.zeros((0, HASH_BYTES), dtype=torch.uint8)
    return torch.from_numpy(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES).copy())


def as_bytes(hashes: Tensor) -> list[bytes]:
    """Return hashes as texts of 32 bytes."""
    return [row.tobytes() for row in hashes.cpu().numpy()]
