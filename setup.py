"""Packaging. A setup.py, since Beam's `--setup_file` takes one to a cluster's workers."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

setup(
    name="care-kpis",
    version="0.1.0",
    description="Customer-care KPIs from conversation events: response and handle times, resolution, backlog.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=["pipelines", "pipelines.*", "transforms", "transforms.*", "sinks", "sinks.*", "fixtures", "fixtures.*"]
    ),
    package_data={
        "fixtures": ["sample/*", "golden/**/*"],
        "pipelines.report": ["templates/*", "locales/*"],
        "pipelines.flink": ["pom.xml"],
        "pipelines.kafka": ["pom.xml"],
    },
    entry_points={"console_scripts": ["care-kpis = pipelines.cli:command"]},
    install_requires=[
        "apache-beam>=2.77,<3",
        "click>=8.2,<9",
        "duckdb>=2.0,<3",
        "numpy>=2.2,<3",
        "pandas>=3.0,<4",
        "prompt_toolkit>=3.0.50,<4",
        "pyarrow>=25,<26",
        "rich>=14,<16",
        "rich-click>=1.9,<2",
        # Time zones for machines that have none of their own (slim containers, Windows).
        "tzdata",
        "urllib3>=2.8,<3",
    ],
    extras_require={
        "audit": ["great-expectations>=1.24,<2"],
        "report": ["babel>=2.17,<3", "jinja2>=3.1,<4", "matplotlib>=3.10,<4", "xlsxwriter>=3.2,<4"],
        "stream": [
            "confluent-kafka>=2.16,<3",
            "javaproperties>=0.8,<0.9",
            "prometheus-client>=0.24,<0.27",
            "tenacity>=9,<10",
        ],
        "test": [
            "hypothesis>=6.100",
            "ipykernel>=7",
            "nbclient>=0.11",
            "nbformat>=5.11",
            "polars>=2.1,<3",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "python-crontab>=3.4",
            "pyyaml>=6",
        ],
        "dev": ["mypy>=2.4,<3", "ruff>=0.17,<0.18", "setuptools>=77"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: Customer Service",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Office/Business",
    ],
)
