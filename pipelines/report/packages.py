"""The packages that reports need, which not every installation has."""

from __future__ import annotations

from importlib.util import find_spec

from transforms.errors import UserError

_PACKAGES = ("babel", "jinja2", "matplotlib", "xlsxwriter")


def require_packages() -> None:
    """Refuses to begin a report that could not be written.

    Raises:
      UserError: a package is not installed.
    """
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise UserError(
                f"Expected the package {name} for reports, but it is not installed: pip install 'care-kpis[report]'."
            )
