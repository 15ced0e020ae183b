"""`make sbom`: write a software bill of materials of the runtime environment, in CycloneDX, to dist/sbom.cdx.json.

It lists what is installed in .venv, with versions, licences and package URLs, as cyclonedx-py finds it there. Hashes
are added from requirements/runtime.txt for what is in it; torch, which is not, is listed without.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "dist" / "sbom.cdx.json"


def locked_hashes(lock: str) -> dict[tuple[str, str], list[str]]:
    """(name, version) → SHA-256 of each of its files, from the text of a lock."""
    found: dict[tuple[str, str], list[str]] = {}
    for block in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE):
        pin = re.match(r"([\w.-]+)==([^\s;]+)", block)
        if pin:
            found[pin[1], pin[2]] = re.findall(r"--hash=sha256:([0-9a-f]{64})", block)
    return found


def with_hashes(bill: dict[str, Any], hashes: dict[tuple[str, str], list[str]]) -> dict[str, Any]:
    """The bill, in whose components the known files are references with a hash each."""
    for component in bill.get("components", []):
        name = re.sub(r"[-_.]+", "-", component["name"]).lower()
        files = hashes.get((name, component.get("version", "")), [])
        component.setdefault("externalReferences", []).extend(
            {
                "type": "distribution",
                "url": f"pkg:pypi/{name}@{component['version']}",
                "hashes": [{"alg": "SHA-256", "content": each}],
            }
            for each in files
        )
    return bill


def _complaint(text: str) -> object:
    """What the schema of CycloneDX 1.6 has against a bill; None when it fits."""
    from cyclonedx.schema import SchemaVersion  # only where the tools of a release are
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def main() -> int:
    """Write the bill. Returns the exit status."""
    program = Path(sys.executable).with_name("cyclonedx-py")
    options = [
        "--pyproject",
        "pyproject.toml",
        "--output-reproducible",
        "--output-format",
        "JSON",
        "--output-file",
        "-",
    ]
    done = subprocess.run(
        [program, "environment", *options, ".venv/bin/python"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)  # noqa: T201
        return done.returncode
    bill = with_hashes(json.loads(done.stdout), locked_hashes((ROOT / "requirements" / "runtime.txt").read_text()))
    text = json.dumps(bill, indent=2, sort_keys=True) + "\n"
    if (complaint := _complaint(text)) is not None:
        print(f"This would be no CycloneDX: {complaint}", file=sys.stderr)  # noqa: T201
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    print(f"{TARGET.relative_to(ROOT)}: {len(bill['components'])} components")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
