"""Time, camera and place of a photograph from its EXIF block, as metadata."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from PIL import Image as PILImage
from PIL.ExifTags import GPS, IFD, Base

KEYS = ("taken", "camera", "latitude", "longitude")
"""Keys of metadata that may come from EXIF."""

_LONGEST = 100  # characters of a camera's name
_TIME = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)", re.ASCII)
_OFFSET = re.compile(r"[+-](0\d|1[0-4]):[0-5]\d", re.ASCII)
_YEARS = range(1800, 2200)


def read_exif(image: PILImage.Image) -> dict[str, str | float]:
    """What the EXIF block of an opened image says, as far as it is there and possible; never raises.

    ``taken`` is local time, ISO 8601, with the offset from UTC if the block has it; ``camera`` the make and
    the model; ``latitude`` and ``longitude`` are in degrees, north and east positive.
    """
    found: dict[str, str | float] = {}
    with contextlib.suppress(Exception):  # damaged blocks raise many types
        exif = image.getexif()
        found |= _camera(exif)
        found |= _taken(exif.get_ifd(IFD.Exif))
        found |= _place(exif.get_ifd(IFD.GPSInfo))
    return found


def _taken(photo: Mapping[int, Any]) -> dict[str, str]:
    """When the photograph was taken, or else digitised."""
    for tag, offset_tag in (
        (Base.DateTimeOriginal, Base.OffsetTimeOriginal),
        (Base.DateTimeDigitized, Base.OffsetTimeDigitized),
    ):
        parts = _TIME.fullmatch(_text(photo.get(tag)))
        with contextlib.suppress(ValueError):  # for instance 0000:00:00 00:00:00
            if parts and (time := datetime(*map(int, parts.groups()))).year in _YEARS:  # type: ignore[arg-type]
                offset = _text(photo.get(offset_tag))
                return {"taken": time.isoformat() + (offset if _OFFSET.fullmatch(offset) else "")}
    return {}


def _camera(exif: Mapping[int, Any]) -> dict[str, str]:
    """Make and model; the model alone if it begins with the first word of the make."""
    make, model = _text(exif.get(Base.Make)), _text(exif.get(Base.Model))
    repeats = make and model.casefold().startswith(make.casefold().split()[0])
    camera = model if repeats else f"{make} {model}".strip()
    return {"camera": camera} if camera and len(camera) <= _LONGEST else {}


def _place(gps: Mapping[int, Any]) -> dict[str, float]:
    """Latitude and longitude; neither if one is missing, or both are zero, as without reception."""
    latitude = _degrees(gps.get(GPS.GPSLatitude), gps.get(GPS.GPSLatitudeRef), "NS", 90)
    longitude = _degrees(gps.get(GPS.GPSLongitude), gps.get(GPS.GPSLongitudeRef), "EW", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:
        return {}
    return {"latitude": latitude, "longitude": longitude}


def _degrees(parts: object, side: object, sides: str, most: int) -> float | None:
    """Degrees of three rational numbers: degrees, minutes and seconds."""
    try:
        whole, minutes, seconds = map(float, parts)  # type: ignore[call-overload]
        sign = {sides[0]: 1, sides[1]: -1}[_text(side)]
    except (TypeError, ValueError, ArithmeticError, KeyError):
        return None
    value = whole + minutes / 60 + seconds / 3600
    possible = min(whole, minutes, seconds) >= 0 and minutes <= 60 and seconds <= 60 and value <= most
    return sign * round(value, 7) if math.isfinite(value) and possible else None


def _text(value: object) -> str:
    """Printable text without spaces around it; empty if it is none."""
    if not isinstance(value, str) or len(value) > 10 * _LONGEST:  # a PNG may hold megabytes
        return ""
    with contextlib.suppress(UnicodeError):  # Pillow reads Latin-1; some cameras write UTF-8
        value = value.encode("latin-1").decode()
    text = " ".join(value.rstrip("\0").split())
    return text if text.isprintable() else ""
