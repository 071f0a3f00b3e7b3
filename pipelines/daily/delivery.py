"""How a report reaches its readers: by mail, and by a POST to a web hook; both try again for a while."""

from __future__ import annotations

import hashlib
import json
import logging
import mimetypes
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, ResponseError

from transforms.errors import UserError

RETRY = urllib3.Retry(
    total=5,
    backoff_factor=1,
    backoff_max=60,
    status_forcelist=(408, 425, 429, 500, 502, 503, 504),
    allowed_methods=None,
    redirect=False,
    retry_after_max=60,
)
"""Six tries in about half a minute; of mail, too."""

_SECONDS = 30
_ATTACHED = (".html", ".xlsx")
PORTS = {"starttls": 587, "tls": 465, "none": 25}
Security = Literal["starttls", "tls", "none"]
_AT_HOME = ("localhost", "127.0.0.1", "::1")


class NotDelivered(Exception):
    """It could not be delivered; the text says why, and has no secret in it."""


@dataclass(frozen=True)
class Message:
    """What is delivered.

    Attributes:
      day: what it is about.
      title: one line.
      text: a few lines.
      files: the files of the report.
      commit_id: the commit that it was made of.
      audit: passed, warning, or none where the result was not audited.
    """

    day: date
    title: str
    text: str
    files: Sequence[Path]
    commit_id: int
    audit: str


class Target(Protocol):
    """A way to readers."""

    def send(self, message: Message) -> None:
        """Delivers a message.

        Raises:
          NotDelivered: it did not work, several times.
        """


@dataclass(frozen=True)
class Mail:
    """Mail by SMTP: the short text, with the page and the workbook attached.

    Attributes:
      to: addresses.
      sender: address.
      host: of the server.
      port: of the server.
      security: starttls, tls or none.
      user: name to log in with; None: without logging in.
      password: to log in with.
    """

    to: tuple[str, ...]
    sender: str
    host: str
    port: int
    security: Security = "starttls"
    user: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        """Refuses to send a password in the clear, and addresses that would be headers of their own."""
        if self.user is not None and self.security == "none" and self.host not in _AT_HOME:
            raise UserError(
                f"Expected an encrypted connection to {self.host} to log in over, got --smtp-security none: use "
                "starttls or tls."
            )
        for address in (*self.to, self.sender):
            if not address.isprintable() or "@" not in address:
                raise UserError(f"Expected a mail address, got {address!r}: correct --mail-to or --mail-from.")

    def send(self, message: Message) -> None:
        """Sends one mail to all addresses."""
        mail, retry = self._made(message), RETRY
        while True:
            try:
                self._send(mail)
                return
            except (OSError, smtplib.SMTPException) as error:
                why = f"{self.host}:{self.port} {_said(error)}"
                if _is_final(error):
                    raise NotDelivered(why) from error
                try:
                    retry = retry.increment("SEND", f"smtp://{self.host}", error=error)
                except MaxRetryError:
                    raise NotDelivered(f"{why}, {RETRY.total} times again") from error
            retry.sleep()

    def _made(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"] = " ".join(message.title.split())
        mail["From"], mail["To"] = self.sender, ", ".join(self.to)
        mail["Date"] = formatdate()
        # The same for the same report: a mail that comes twice can be told from two.
        told = hashlib.sha256(f"{message.day} {message.text} {self.to}".encode()).hexdigest()[:24]
        mail["Message-ID"] = f"<{message.day}.{told}@{self.sender.rpartition('@')[2]}>"
        mail.set_content(message.text)
        for path in message.files:
            if path.suffix in _ATTACHED:
                kind = (mimetypes.guess_type(path.name)[0] or "application/octet-stream").split("/")
                mail.add_attachment(path.read_bytes(), kind[0], kind[1], filename=path.name)
        return mail

    def _send(self, mail: EmailMessage) -> None:
        context = ssl.create_default_context()
        if self.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=_SECONDS, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=_SECONDS)
        with server:
            if self.security == "starttls":
                server.starttls(context=context)
            if self.user is not None:
                server.login(self.user, self.password or "")
            server.send_message(mail)


@dataclass(frozen=True)
class WebHook:
    """A POST of a small JSON object to an address, which is a secret itself as a rule.

    Attributes:
      url: the address.
      token: sent as a bearer token; None: without.
    """

    url: str
    token: str | None = None

    def __post_init__(self) -> None:
        """Refuses what is no web address."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("Expected an address with http:// or https:// for --web-hook, got another one: correct it.")

    @property
    def host(self) -> str:
        """The part of the address that may be told."""
        return f"{urlsplit(self.url).scheme}://{urlsplit(self.url).hostname}"

    def send(self, message: Message) -> None:
        """Posts text, day, commit, verdict of the audit and the paths of the files."""
        said = {
            "text": message.text,
            "id": f"care-kpis-{message.day}",
            "day": message.day.isoformat(),
            "title": message.title,
            "commit_id": message.commit_id,
            "audit": message.audit,
            "files": [str(path.absolute()) for path in message.files],
        }
        headers = {"Content-Type": "application/json", "User-Agent": "care-kpis"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        # Its warnings name the whole address.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        body = json.dumps(said, ensure_ascii=False).encode()
        with urllib3.PoolManager(timeout=_SECONDS) as pool:
            try:
                answer = pool.request("POST", self.url, body=body, headers=headers, retries=RETRY, redirect=False)
            except MaxRetryError as error:
                reason = error.reason
                why = str(reason) if isinstance(reason, ResponseError) else f"does not answer ({type(reason).__name__})"
                raise NotDelivered(f"{self.host}: {why}, {RETRY.total} times again") from None
            except HTTPError as error:
                raise NotDelivered(f"{self.host} cannot be asked ({type(error).__name__})") from None
        if not 200 <= answer.status < 300:
            raise NotDelivered(f"{self.host} answers with status {answer.status}")


def _is_final(error: Exception) -> bool:
    """Whether trying again would come to the same."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= 500 for code, _ in error.recipients.values())
    if isinstance(error, smtplib.SMTPResponseException):
        return error.smtp_code >= 500
    return isinstance(error, smtplib.SMTPNotSupportedError | ssl.SSLCertVerificationError)


def _said(error: Exception) -> str:
    """What a server said or did, without line breaks."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"refuses {', '.join(error.recipients)}"
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        return f"answers {error.smtp_code} {' '.join(text.split())[:200]}"
    return f"cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
