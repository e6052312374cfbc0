"""Mail: the headers that a reader sees, and the text. Attachments are named, not read."""

import io
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from skipwise.data.formats.encodings import encoding_of
from skipwise.data.formats.faults import UnreadableError
from skipwise.data.formats.texts import page_text

if TYPE_CHECKING:
    from email.message import MIMEPart

    from olefile import OleFileIO

_HEADERS = ("From", "To", "Cc", "Date", "Subject")


def text_of_eml(content: bytes, name: str) -> str:
    """The text of a mail as it is sent, `.eml`.

    Raises:
        UnreadableError: its text is in an encoding that it does not say.
    """
    # Imported here, since most runs read no mail.
    from email import message_from_bytes, policy

    message = message_from_bytes(content, policy=policy.default)
    headers = {header: str(message[header]) for header in _HEADERS if message[header]}
    if not headers:
        raise ValueError("it has none of the headers of a mail")
    attached = [file for part in message.iter_attachments() if (file := part.get_filename())]
    body = message.get_body(("plain", "html"))
    text = _decoded(body, name) if body is not None else ""
    if body is not None and body.get_content_subtype() == "html":
        text = page_text(text)
    return _mail(headers, attached, text)


def _decoded(part: "MIMEPart", name: str) -> str:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    for codec in (part.get_content_charset(), "utf-8", encoding_of(payload)):
        try:
            if codec:
                return payload.decode(codec)
        except (UnicodeDecodeError, LookupError):
            continue
    raise UnreadableError("encoding", name, "has a text that is not in the encoding it names", "save it as UTF-8")


def text_of_msg(content: bytes, name: str) -> str:
    """The text of an Outlook mail, `.msg`.

    Raises:
        UnreadableError: its text is kept as rich text alone.
    """
    from olefile import OleFileIO

    with OleFileIO(io.BytesIO(content)) as file:
        properties = file.openstream("__properties_version1.0").read()[32:]
        own = {properties[at + 2 : at + 4]: properties[at + 8 : at + 16] for at in range(0, len(properties) - 15, 16)}
        codec = _codec(own)
        headers = {
            "From": _sender(file, codec),
            "To": _property(file, 0x0E04, codec),
            "Cc": _property(file, 0x0E03, codec),
            "Date": _date(own.get(b"\x39\x00") or own.get(b"\x06\x0e")),
            "Subject": _property(file, 0x0037, codec),
        }
        text = _property(file, 0x1000, codec)
        if not text.strip() and (page := _binary(file, "__substg1.0_10130102")):
            text = page_text(page.decode(encoding_of(page) or codec, "strict"))
        if not text.strip() and file.exists("__substg1.0_10090102"):
            raise UnreadableError(
                "textless", name, "has its text as rich text alone", "save it from Outlook as .eml or .txt"
            )
        folders = sorted({entry[0] for entry in file.listdir() if entry[0].startswith("__attach_version1.0_")})
        attached = [
            file_name
            for folder in folders
            if (file_name := _property(file, 0x3707, codec, folder) or _property(file, 0x3704, codec, folder))
        ]
    return _mail({header: value for header, value in headers.items() if value}, attached, text)


def _mail(headers: dict[str, str], attached: list[str], text: str) -> str:
    lines = [f"{header}: {' '.join(value.split())}" for header, value in headers.items()]
    lines += [f"Attachments: {', '.join(attached)}"] if attached else []
    return "\n".join(lines) + "\n\n" + text.replace("\r\n", "\n").strip()


def _codec(own: dict[bytes, bytes]) -> str:
    """The code page of texts that are not Unicode: that of the message, else of its sender's machine."""
    for tag in (b"\xfd\x3f", b"\xde\x3f"):
        if tag in own:
            page = struct.unpack("<I", own[tag][:4])[0]
            return {65001: "utf-8", 20127: "ascii", 28591: "cp1252", 50220: "iso2022_jp", 51932: "euc_jp"}.get(
                page, f"cp{page}"
            )
    return "cp1252"


def _property(file: "OleFileIO", tag: int, codec: str, folder: str = "") -> str:
    at = f"{folder}/" if folder else ""
    if wide := _binary(file, f"{at}__substg1.0_{tag:04X}001F"):
        return wide.decode("utf-16-le").rstrip("\x00")
    return _binary(file, f"{at}__substg1.0_{tag:04X}001E").decode(codec).rstrip("\x00")


def _binary(file: "OleFileIO", path: str) -> bytes:
    return file.openstream(path).read() if file.exists(path) else b""


def _sender(file: "OleFileIO", codec: str) -> str:
    name, address = _property(file, 0x0C1A, codec), _property(file, 0x5D01, codec) or _property(file, 0x0C1F, codec)
    return f"{name} <{address}>" if name and "@" in address and name != address else name or address


def _date(time: bytes | None) -> str:
    """A time of Windows: steps of 100 ns since 1601."""
    if time is None:
        return ""
    begin = datetime(1601, 1, 1, tzinfo=UTC)
    return (begin + timedelta(microseconds=struct.unpack("<Q", time)[0] // 10)).strftime("%Y-%m-%d %H:%M UTC")
