"""Encodings of text files: UTF-8, or another one that the text itself gives evidence of.

A file that is UTF-8 is read as UTF-8, whatever it declares. For another one, the encoding that a web page declares is
taken if its bytes allow it; else the one whose characters are those of its language: kana for the Japanese encodings,
the most frequent characters for the Chinese and Korean ones, the accented letters of one language for Windows-1252.
Without such evidence, or with evidence of two, a file is not read: a wrong guess is text that nobody has written.
Statistical detectors are wrong more often, and as confident then (docs/results/documents.md).
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

from skipwise.data.formats.faults import Found, UnreadableError

NAMES = {
    "utf-8": "UTF-8",
    "utf-16": "UTF-16",
    "utf-32": "UTF-32",
    "iso2022_jp": "ISO-2022-JP",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "gb18030": "GB18030",
    "big5": "Big5",
    "cp949": "EUC-KR",
    "cp1252": "Windows-1252",
}
"""Encodings that are detected, by codec; those that web pages declare may be any that Python knows."""

# Bytes of lines that the encoding is decided by, from the first line on that is not ASCII.
_SAMPLE_BYTES = 256 << 10
# A web page declares its encoding within so many bytes.
_DECLARED_BYTES = 4096
_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([\w-]+)|<\?xml[^>]{0,100}encoding=["']([\w-]+)""", re.I
)
# Browsers, too, read these names as the larger encoding.
_LARGER = {"shift_jis": "cp932", "iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}
# A mark of UTF-32 begins with one of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What Japanese begins with in ISO-2022-JP, which is ASCII otherwise.
_ISO_2022 = b"\x1b$"
_ESCAPE = b"\x1b"  # found in a tenth of the time

# The most frequent characters of Japanese, Chinese (simplified, traditional) and Korean: 10 to 30% of a text.
_FREQUENT = {
    "cp932": "のにはをとがでしてたるいすなれまかもらり",
    "euc_jp": "のにはをとがでしてたるいすなれまかもらり",
    "gb18030": "的一是不了在有人这中大为上个国我以要他",
    "big5": "的一是不了在有人這中大為上個國我以要他",
    "cp949": "이다는에을의가고하지를한은도로",
}
# The accented letters of German, French, Spanish, Portuguese, Italian, Nordic languages, Dutch, Icelandic, Catalan and
# Estonian, with those of common loan words.
_WESTERN = [
    "äöüßéàèê",
    "àâæçéèêëîïôœùûü",
    "áéíñóúü",
    "áâãàçéêíóôõú",
    "àèéìíîòóùú",
    "åäöæøéüà",
    "éèëïóöüáêç",
    "áéíóúýþæöð",
    "àçèéíïòóúü",
    "äöõüšž",
]
_SIGNS = "–—‘’“”„‚…•€£§°«»©®™±×·¼½¾¹²³µ´¢¥‰†‡‹›¿¡ªº\xa0\xad"
# What no Western text has: a sign inside a word, an opening sign after a letter, a capital after a small letter, a
# letter three times, ã before a consonant, « and » of the Macintosh.
_STRANGE = re.compile(
    rf"(?<=[^\W\d_])[{re.escape(''.join(set(_SIGNS) - set('’‘´·–—')))}](?=[^\W\d_])"
    r"|(?<=[^\W\d_])[‚„‹¿¡]|(?<=[a-zß-ÿ])[À-ÖØ-ÞŠŽŒŸ]|([À-ÿ])\1\1|ã(?=[b-df-np-rt-z])|(?<!\w)[ÇÈ](?!\w)"
)
# Controls; and what Python makes of single bytes that Shift-JIS does not have.
_NO_LETTERS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x80\uf8f0-\uf8f3]")
_UTF_8_PAIR = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


@dataclass(slots=True)
class Encoding:
    """The encoding of one file, decided at its first line that is not ASCII.

    Attributes:
        codec: Python's name of it; None until it is decided.
        is_page: whether the file may declare its encoding as web pages do.
    """

    codec: str | None = None
    is_page: bool = False

    def lines(self, raw: Iterator[bytes], name: str, cut: bool) -> Iterator[Found]:
        """The lines of a file as text, counted from 1; for a line that cannot be decoded, its error.

        Args:
            raw: the lines as bytes, with their ends.
            name: the file, for messages.
            cut: whether they are the beginning of a file.
        """
        for number, line in enumerate(self._decided(raw), start=1):
            if self.codec in _MARKS.values():
                yield from self._wide(line, raw, name, cut)
                return
            try:
                # A byte-order mark is not part of the text.
                yield number, line.decode(self.codec or "utf-8").removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                yield number, self._error(error, line, f"{name}:{number}")

    def _decided(self, raw: Iterator[bytes]) -> Iterator[bytes]:
        head = b""
        is_first = True
        for line in raw:
            if is_first and self.codec is None:
                self.codec = next((codec for mark, codec in _MARKS.items() if line.startswith(mark)), None)
            is_first = False
            if self.codec is not None or (line.isascii() and not (_ESCAPE in line and _ISO_2022 in line)):
                if self.is_page and self.codec is None and len(head) < _DECLARED_BYTES:
                    head += line
                yield line
                continue
            ahead, size, failed = [line], len(line), None
            try:
                while size < _SAMPLE_BYTES and (following := next(raw, None)) is not None:
                    ahead.append(following)
                    size += len(following)
            except UnreadableError as error:
                failed = error
            sample = b"".join(ahead)
            self.codec = encoding_of(sample, _declared(head + sample) if self.is_page else None) or "utf-8"
            yield from ahead
            if failed is not None:
                raise failed

    def _wide(self, first: bytes, rest: Iterator[bytes], name: str, cut: bool) -> Iterator[Found]:
        """Lines of UTF-16 or UTF-32, whose bytes were cut where one of them looks like the end of a line."""
        decoder = codecs.getincrementaldecoder(self.codec or "utf-16")()
        number, held = 1, decoder.decode(first)
        try:
            for piece in rest:
                *whole, held = (held + decoder.decode(piece)).split("\n")
                for line in whole:
                    yield number, line + "\n"
                    number += 1
            if not cut:
                held += decoder.decode(b"", final=True)
                if held:
                    yield number, held
        except UnicodeDecodeError:
            reason = f"is not {NAMES[self.codec or 'utf-16']}, as its first bytes say"
            yield number, UnreadableError("encoding", f"{name}:{number}", reason, _CURE)

    def _error(self, error: UnicodeDecodeError, line: bytes, where: str) -> UnreadableError:
        byte = f"(byte {error.start + 1} of the line is 0x{line[error.start]:02x})"
        name = NAMES.get(self.codec or "utf-8", self.codec)
        others = "" if self.codec in (None, "utf-8") else ", as what stands before it is"
        return UnreadableError("encoding", where, f"is not {name} {byte}{others}", _CURE)


_CURE = "convert it to UTF-8, as by iconv -f ITS-ENCODING -t UTF-8"


def encoding_of(sample: bytes, declared: str | None = None) -> str | None:
    """The codec of some bytes that are not all ASCII; None if they give no clear evidence.

    Args:
        sample: whole characters.
        declared: the codec that the file itself names, if any.
    """
    if _ISO_2022 in sample and _decodes(sample, "iso2022_jp"):
        return "iso2022_jp"
    if _decodes(sample, "utf-8"):
        return "utf-8"
    if declared not in (None, "utf-8") and _decodes(sample, declared):
        return declared
    found = [codec for codec, is_of in _EVIDENCE.items() if (text := _decodes(sample, codec)) and is_of(text, codec)]
    if len(found) != 1:
        return None
    # Windows-1252 takes any bytes, also those of a file that is UTF-8 but for a few lines.
    others = sum(map(len, _UTF_8_PAIR.findall(sample)))
    return None if found == ["cp1252"] and others * 10 > sum(byte >= 0x80 for byte in sample) else found[0]


def _decodes(sample: bytes, codec: str | None) -> str:
    try:
        return sample.decode(codec or "")
    except (UnicodeDecodeError, LookupError):
        return ""


def _declared(head: bytes) -> str | None:
    found = _DECLARED.search(head[:_DECLARED_BYTES])
    if found is None:
        return None
    try:
        codec = codecs.lookup((found[1] or found[2]).decode("ascii")).name
    except LookupError:
        return None
    return _LARGER.get(codec, codec)


def _is_eastern(text: str, codec: str) -> bool:
    """Whether the most frequent characters of its language are as frequent as in any text of it."""
    wide = [letter for letter in text if letter > "\x7f"]
    frequent = set(_FREQUENT[codec])
    if sum(letter in frequent for letter in wide) < max(4, 0.06 * len(wide)) or _NO_LETTERS.search(text):
        return False
    # Read in another one's encoding, Japanese has half-width katakana, or its own kana among other characters.
    strange = ("\uff61", "\uff9f") if codec in ("cp932", "euc_jp") else ("\u3041", "\u30fe")
    return sum(strange[0] <= letter <= strange[1] for letter in wide) <= 0.1 * len(wide)


def _is_western(text: str, codec: str) -> bool:
    """Whether nearly all letters beyond ASCII are those of one Western language, and stand where these do."""
    others = [letter for letter in text if letter > "\x7f"]
    letters = [letter.lower() for letter in others if letter.isalpha() and letter not in "ªº"]
    if len(letters) > 0.25 * sum(letter.isalpha() for letter in text):
        return False
    if len(letters) < 3 and len(re.findall(r"[A-Za-z]’[a-z]|[\s(]“[A-Za-z]", text)) < 3:
        return False
    known = max(sum(letter in alphabet for letter in letters) for alphabet in _WESTERN)
    signs = sum(letter in _SIGNS for letter in others)
    strange = len(others) - known - signs + len(_STRANGE.findall(text))
    return strange <= 0.03 * len(others) and not _NO_LETTERS.search(text)


_EVIDENCE = {**dict.fromkeys(_FREQUENT, _is_eastern), "cp1252": _is_western}
