"""`make test-clients`: generate a Python and a TypeScript client, compile both strictly, and run jobs with each.

Against an installation of its own, that demands a key. Ends with status 1 when anything of it fails.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from rich.console import Console

from api.http.auth import new_key
from tests.support.standalone import api_process, standalone_system
from tests.support.waiting import PATIENT

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / ".venv" / "clients"
console = Console()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tuwen-clients-") as name:
        folder = Path(name)
        with standalone_system(folder) as system:
            key, digest = new_key()
            system.database.keys.add(name="a", tenant="a", sha256=digest, quota=100)
            settings = system.settings.model_copy(update={"auth": "keys"})
            with api_process(settings, folder / "api.log") as (url, _):
                document = folder / "openapi.json"
                document.write_bytes(httpx.get(f"{url}/openapi.json", timeout=PATIENT).raise_for_status().content)
                try:
                    check_python(document, folder / "python", url, key)
                    check_typescript(document, folder / "typescript", url, key)
                except subprocess.CalledProcessError as error:
                    console.print(f"[red]failed with status {error.returncode}[/red]: {error.cmd}", soft_wrap=True)
                    return 1
    return 0


def check_python(document: Path, folder: Path, url: str, key: str) -> None:
    """openapi-python-client, mypy --strict, run_job.py."""
    config = HERE / "openapi-python-client.yml"
    run(
        "openapi-python-client",
        "generate",
        f"--path={document}",
        f"--output-path={folder}",
        f"--config={config}",
        "--fail-on-warning",
    )
    shutil.copy(HERE / "run_job.py", folder)
    run("python", "-m", "compileall", "-q", "tuwen_client", folder=folder)
    run("python", "-m", "mypy", "--strict", "tuwen_client", "run_job.py", folder=folder)
    run("python", "run_job.py", url, key, folder=folder)


def check_typescript(document: Path, folder: Path, url: str, key: str) -> None:
    """openapi-typescript, tsc --strict, run_job.ts."""
    folder.mkdir()
    for file in ("package.json", "run_job.ts", "tsconfig.json"):
        shutil.copy(HERE / file, folder)
    (folder / "node_modules").symlink_to(TOOLS / "npm" / "node_modules")
    # Otherwise it holds fields with a default for required, in requests too.
    options = ("--output=schema.d.ts", "--default-non-nullable=false")
    run("node", "node_modules/openapi-typescript/bin/cli.js", str(document), *options, folder=folder)
    run("node", "node_modules/typescript/bin/tsc", folder=folder)
    run("node", "run_job.js", url, key, folder=folder)


def run(program: str, *arguments: str, folder: Path | None = None) -> None:
    """Run a program of the tools' own environment, and say how long it took.

    Raises:
        CalledProcessError: it failed; it has said why.
    """
    started = time.monotonic()
    path = {"PATH": f"{TOOLS / 'bin'}:/usr/bin:/bin", "HOME": str(Path.home())}
    subprocess.run([str(TOOLS / "bin" / program), *arguments], cwd=folder, env=path, check=True)
    shown = " ".join(Path(each).name for each in (program, *arguments) if not each.startswith(("http", "tw_")))
    console.print(f"[green]{time.monotonic() - started:5.1f} s[/green]  {shown}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
