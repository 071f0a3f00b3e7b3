"""Where reports are delivered to: options, environment variables or a file; secrets come from the latter two only."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from pipelines.parameters import NamedPath
from transforms.errors import UserError

if TYPE_CHECKING:
    from pipelines.daily.delivery import Target

PREFIX = "CARE_KPIS_"
SECRETS = ("SMTP_PASSWORD", "WEB_HOOK", "WEB_HOOK_TOKEN")
"""Environment variables, behind PREFIX; each may be replaced by a file, named by the option of its name and -file."""

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mail_to", {"multiple": True, "metavar": "ADDRESS", "help": "Mail the report to; several times for more."}),
    ("mail_from", {"metavar": "ADDRESS", "help": "Sender of the mail."}),
    ("smtp_host", {"metavar": "HOST", "default": "localhost", "show_default": True, "help": "Mail server."}),
    ("smtp_port", {"type": click.IntRange(1, 65535), "help": "Its port.  [default: 587, 465 for tls, 25 for none]"}),
    (
        "smtp_security",
        {
            "type": click.Choice(("starttls", "tls", "none")),
            "default": "starttls",
            "show_default": True,
            "help": "How the connection is encrypted.",
        },
    ),
    ("smtp_user", {"metavar": "NAME", "help": "Log in with this name; the password is CARE_KPIS_SMTP_PASSWORD."}),
    ("smtp_password_file", {"type": NamedPath(path_type=Path), "metavar": "FILE", "help": "File with the password."}),
    (
        "web_hook_file",
        {"type": NamedPath(path_type=Path), "metavar": "FILE", "help": "File with the address to POST to."},
    ),
    (
        "web_hook_token_file",
        {"type": NamedPath(path_type=Path), "metavar": "FILE", "help": "File with a bearer token."},
    ),
)
_NAMES = tuple(name for name, _ in _OPTIONS)


def delivery_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --delivery, --mail-to and the like to a command; each of them may be an environment variable, too."""
    options = [
        click.option(
            "--delivery",
            type=NamedPath(path_type=Path),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_read_file,
            help='TOML file with these options: mail_to = ["a@example.com"], and so on.',
        ),
        *(
            click.option(f"--{name.replace('_', '-')}", envvar=f"{PREFIX}{name.upper()}", **said)
            for name, said in _OPTIONS
        ),
    ]
    for option in reversed(options):
        command = option(command)
    names = ["--delivery", *(f"--{name.replace('_', '-')}" for name in _NAMES)]
    return click.option_panel("Delivery (secrets: docs/daily.md)", options=names)(command)


def targets_of(
    mail_to: tuple[str, ...],
    mail_from: str | None,
    smtp_host: str,
    smtp_port: int | None,
    smtp_security: Any,
    smtp_user: str | None,
    smtp_password_file: Path | None,
    web_hook_file: Path | None,
    web_hook_token_file: Path | None,
) -> dict[str, Target]:
    """The ways to readers that these options ask for, by name.

    Raises:
      UserError: something is missing, or a file with a secret cannot be read.
    """
    from pipelines.daily.delivery import PORTS, Mail, WebHook

    targets: dict[str, Target] = {}
    if mail_to:
        if mail_from is None:
            raise UserError("Expected --mail-from beside --mail-to, got none: name the sender.")
        password = _secret("SMTP_PASSWORD", smtp_password_file)
        if smtp_user is not None and password is None:
            raise UserError(
                "Expected a password for --smtp-user, got none: set CARE_KPIS_SMTP_PASSWORD or give "
                "--smtp-password-file."
            )
        port = PORTS[smtp_security] if smtp_port is None else smtp_port
        targets["mail"] = Mail(tuple(mail_to), mail_from, smtp_host, port, smtp_security, smtp_user, password)
    url = _secret("WEB_HOOK", web_hook_file)
    if url is not None:
        targets["web_hook"] = WebHook(url, _secret("WEB_HOOK_TOKEN", web_hook_token_file))
    return targets


def _secret(name: str, file: Path | None) -> str | None:
    """A secret from its file, else from the environment; None where neither has it."""
    if file is None:
        return os.environ.get(f"{PREFIX}{name}") or None
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        option = f"--{name.lower().replace('_', '-')}-file"
        raise UserError(f"{option}: expected a readable text file, got {file} ({type(error).__name__}).") from None


def _read_file(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    """Takes what a file says as defaults of the options."""
    if path is None:
        return
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"--delivery: expected a readable TOML file, got {path} ({why}): correct it.") from None
    for name, value in said.items():
        if name not in _NAMES:
            close = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(_NAMES)}."
            raise UserError(f"{path}: {name}: there is no such setting; {hint}")
        if isinstance(value, dict) or (isinstance(value, list) and name != "mail_to"):
            raise UserError(f"{path}: {name}: expected text or a number, got a table or a list: correct it.")
    if isinstance(said.get("mail_to"), str):
        said["mail_to"] = [said["mail_to"]]
    context.default_map = {**(context.default_map or {}), **said}
