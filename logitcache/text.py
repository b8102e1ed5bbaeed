r"""Text from data with all of its characters visible.

The name of a file, an architecture or a description may contain escape sequences of a terminal,
marks that change the direction of writing, or surrogates that cannot be encoded. Printed text and
the messages of errors show them as ``\x1b``, ``\u202e`` or ``\udc80``.
"""

from __future__ import annotations

import unicodedata

__all__ = ["encodable", "visible"]

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINER = "\u200d"  # joins two symbols to one emoji
_SYMBOLS = frozenset({"So", "Sk"})
_AS_PICTURE = "\ufe0f"


def visible(text: object) -> str:
    """Return text on one line with all of its characters visible.

    Args:
        text: Any object, converted by ``str``.
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(
        _escaped(character) if _is_hidden(shown, index) else character
        for index, character in enumerate(shown)
    )


def encodable(text: str) -> str:
    """Return text that UTF-8 can encode: lone surrogates are written out, nothing else."""
    return text.encode(errors="backslashreplace").decode()


def _is_hidden(text: str, index: int) -> bool:
    character = text[index]
    if character == _JOINER:
        return not (_is_symbol(text[index - 1 : index]) and _is_symbol(text[index + 1 : index + 2]))
    return unicodedata.category(character) in _HIDDEN


def _is_symbol(character: str) -> bool:
    return character == _AS_PICTURE or (
        character != "" and unicodedata.category(character) in _SYMBOLS
    )


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
