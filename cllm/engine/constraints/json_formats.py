"""What `format` says of strings, as regular expressions; a format that is not here asserts nothing.

Sources: RFC 3339 (dates, times, durations), RFC 3986 (URIs), RFC 4291 (IPv6), RFC 5321 (mail),
RFC 6901 (JSON pointers), RFC 1123 (host names), RFC 9562 (UUIDs). Each expression matches only
what its format allows; a few leave out rare forms: leap seconds, host names with "--", quoted
mail boxes, mail domains without a dot.
"""

from __future__ import annotations

from collections.abc import Mapping

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # from 0001
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP = f"(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    f"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_HOUR = "(?:[01][0-9]|2[0-3])"
_CLOCK = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,9}})?"
_TIME = f"{_CLOCK}(?:Z|[+-]{_HOUR}:[0-5][0-9])"

_N = "[0-9]{1,9}"
_CLOCK_SPAN = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DAY_SPAN = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_DURATION = f"P(?:{_N}W|{_DAY_SPAN}(?:{_CLOCK_SPAN})?|{_CLOCK_SPAN})"

_LABEL = "[A-Za-z0-9](?:-?[A-Za-z0-9]){0,31}"  # at most 63 characters
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+[A-Za-z]{{2,24}}"

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_H = "[0-9A-Fa-f]{1,4}"
_IPV6 = "(?:" + "|".join(
    [f"(?:{_H}:){{7}}{_H}", f"(?:{_H}:){{6}}{_IPV4}", f"::(?:[Ff]{{4}}:)?{_IPV4}"]
    # `left` groups, "::", and at most seven groups in all
    + [
        (f"(?:{_H}:){{{left - 1}}}{_H}" if left else "")
        + "::"
        + (f"(?:{_H}(?::{_H}){{0,{6 - left}}})?" if left < 7 else "")
        for left in range(8)
    ]
) + ")"  # fmt: skip

_HEX = "[0-9A-Fa-f]"


def _uuid(version: str) -> str:
    variant = "[89ABab]" if version != _HEX else _HEX
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-{variant}{_HEX}{{3}}-{_HEX}{{12}}"


_ESCAPED = f"%{_HEX}{{2}}"
_CHAR = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|{_ESCAPED})"
_CHAR_NO_COLON = rf"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|{_ESCAPED})"
_AUTHORITY = (
    rf"//(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|{_ESCAPED})*@)?"
    rf"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|{_ESCAPED})*|\[{_IPV6}\])(?::[0-9]{{0,5}})?(?:/{_CHAR}*)*"
)
_ABSOLUTE = f"/(?:{_CHAR}+(?:/{_CHAR}*)*)?"
_TAIL = rf"(?:\?(?:{_CHAR}|[/?])*)?(?:\#(?:{_CHAR}|[/?])*)?"
_URI = f"[A-Za-z][A-Za-z0-9+.-]*:(?:{_AUTHORITY}|{_ABSOLUTE}|{_CHAR}+(?:/{_CHAR}*)*|){_TAIL}"
_RELATIVE = f"(?:{_AUTHORITY}|{_ABSOLUTE}|{_CHAR_NO_COLON}+(?:/{_CHAR}*)*|){_TAIL}"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"

FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipv4interface": f"{_IPV4}(?:/(?:[12]?[0-9]|3[0-2]))?",
    "ipv6interface": f"{_IPV6}(?:/(?:[1-9]?[0-9]|1[01][0-9]|12[0-8]))?",
    "uuid": _uuid(_HEX),
    **{f"uuid{version}": _uuid(version) for version in "1345678"},
    "uri": _URI,
    "iri": _URI,
    "uri-reference": f"(?:{_URI}|{_RELATIVE})",
    "iri-reference": f"(?:{_URI}|{_RELATIVE})",
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]{{0,9}})(?:\\#|{_POINTER})",
}

LENGTHS: Mapping[str, int] = {"hostname": 253, "idn-hostname": 253}
"""Maximum characters of a format, where its expression does not say it."""

DISJOINT = ("date", "time", "date-time", "uuid", "ipv4", "email")
"""Formats of which no two have a text in common."""


def pattern_of(format: str) -> str | None:
    """The expression for a whole string of this format; None: the format asserts nothing."""
    expression = FORMATS.get(format)
    return None if expression is None else f"^(?:{expression})$"
