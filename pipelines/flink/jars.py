"""Fetches Flink and Beam's job server for it with Maven, once, and makes one jar of them."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from pipelines.maven import check_programs, fetch_jars

POM = Path(__file__).with_name("pom.xml")

CACHE = Path(__file__).parents[2] / ".flink"
"""Where the jar is kept unless said otherwise: in the work tree, left out by .gitignore."""

FLINK_VERSION = "1.19"
"""Of what the pom names, as Beam's --flink_version wants it."""

MAIN_CLASS = "org.apache.beam.runners.flink.FlinkJobServerDriver"

OPENED_PACKAGES = ("java.io", "java.lang", "java.net", "java.nio", "java.util", "java.util.concurrent")
"""Packages of java.base that Flink's serializers look into."""

_MANIFEST = "META-INF/MANIFEST.MF"
_SERVICES = "META-INF/services/"
_SIGNATURES = (".SF", ".RSA", ".DSA", ".EC")


def jar_in(cache: Path) -> Path:
    """Where `fetch_jar` keeps the jar; there is one of this name only once it is complete."""
    # Named after what makes it, so that another pom makes another one.
    made_of = POM.read_bytes() + Path(__file__).read_bytes()
    return cache / f"flink-{FLINK_VERSION}-{hashlib.sha256(made_of).hexdigest()[:12]}.jar"


def fetch_jar(cache: Path = CACHE) -> Path:
    """Fetches what the pom names and makes one jar of it, unless it is there already.

    Args:
      cache: folder to keep it in; made where it is not there.

    Returns:
      The jar: for Beam's --flink_job_server_jar, and the class path of a cluster.

    Raises:
      UserError: java or mvn is missing, or Maven could not get something.
    """
    check_programs("Flink")
    jar = jar_in(cache)
    if not jar.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
            fetch_jars(POM, Path(folder))
            whole = merge_jars(sorted(Path(folder).glob("*.jar")), Path(folder) / "whole.zip")
            for old in set(cache.glob("flink-*.jar")) - {jar}:
                old.unlink()
            whole.rename(jar)
    return jar


def merge_jars(jars: Iterable[Path], whole: Path) -> Path:
    """Makes one jar of many, that starts Beam's job server for Flink.

    One, since a job carries its jars to the cluster, and what takes long is their number. The manifest opens the
    packages that Flink looks into, so that `java -jar` needs no options. Folders stay (the web UI asks for one).

    Args:
      jars: what goes in; where a file is in several, the first one counts, and lists of services are joined.
      whole: the jar to write.

    Returns:
      The jar.
    """
    attributes = {
        "Manifest-Version": "1.0",
        "Main-Class": MAIN_CLASS,
        "Multi-Release": "true",
        "Add-Opens": "\n  ".join(f"java.base/{name}" for name in OPENED_PACKAGES),
    }
    written: set[str] = {_MANIFEST}
    services: dict[str, list[bytes]] = {}
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        target.writestr(_MANIFEST, "".join(f"{name}: {value}\n" for name, value in attributes.items()))
        for jar in jars:
            with zipfile.ZipFile(jar) as source:
                for entry in source.infolist():
                    name = entry.filename
                    if name.startswith(_SERVICES) and not entry.is_dir():
                        services.setdefault(name, []).append(source.read(entry))
                    elif name not in written and not _is_left_out(entry):
                        written.add(name)
                        target.writestr(name, source.read(entry))
        for name, parts in services.items():
            target.writestr(name, b"\n".join(parts) + b"\n")
    return whole


def _is_left_out(entry: zipfile.ZipInfo) -> bool:
    """What holds for one jar only: its signatures and the name of its module."""
    is_signature = entry.filename.startswith("META-INF/") and entry.filename.endswith(_SIGNATURES)
    return is_signature or entry.filename.endswith("module-info.class")
