"""`make images`: pin the images of docker-compose.yml and Dockerfile to the digests that their tags have now.

A tag may be moved to another image at any time; a digest is the hash of one. The digest of a tag is asked of its
registry by the distribution API (https://github.com/opencontainers/distribution-spec), with an anonymous token where
the registry wants one, as Docker Hub does; the manifest is fetched and hashed, so that nobody's word is taken for it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import httpx

ROOT = Path(__file__).parents[1]
FILES = ("docker-compose.yml", "Dockerfile")
HUB = "registry-1.docker.io"
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_DIGEST = r"sha256:[0-9a-f]{64}"
# `image: redis:8@sha256:…` of others, in Compose; ours have no tag, and those of workers are built here. In the
# Dockerfile, the tag of python is the default of an argument.
_COMPOSE = re.compile(
    rf"^(?P<head>\s*image: )(?P<name>(?!tuwen)[\w./:-]+?):(?P<tag>[\w.-]+)(?:@(?P<digest>{_DIGEST}))?$", re.MULTILINE
)
_DOCKERFILE = re.compile(rf"^(?P<head>ARG )(?P<name>PYTHON)=(?P<tag>[\w.-]+)(?:@(?P<digest>{_DIGEST}))?$", re.MULTILINE)
_FIELD = re.compile(r'(\w+)="([^"]*)"')


class Unknown(Exception):
    """A registry does not say what a tag is."""


@dataclass(frozen=True, slots=True)
class Pin:
    """An image that a file names."""

    name: str
    tag: str
    digest: str | None

    @property
    def registry(self) -> str:
        """Host of the registry."""
        return self._named_registry or HUB

    @property
    def repository(self) -> str:
        """Name within the registry; official images of Docker Hub are in `library`."""
        if self._named_registry:
            return self.name.partition("/")[2]
        return self.name if "/" in self.name else f"library/{self.name}"

    @property
    def _named_registry(self) -> str:
        """By the rule of Docker, a first part with a dot or a port is a host; empty when there is none."""
        first, slash, _ = self.name.partition("/")
        return first if slash and ({*first} & {".", ":"} or first == "localhost") else ""


def pins(text: str) -> list[Pin]:
    """The images of others that the text of a Compose file or Dockerfile names."""
    found = [Pin(match["name"], match["tag"], match["digest"]) for match in _COMPOSE.finditer(text)]
    return found + [Pin("python", match["tag"], match["digest"]) for match in _DOCKERFILE.finditer(text)]


def pin(text: str, digests: dict[tuple[str, str], str]) -> str:
    """The text with these digests, (name, tag) → digest, behind the tags."""

    def compose(match: re.Match[str]) -> str:
        digest = digests[match["name"], match["tag"]]
        return f"{match['head']}{match['name']}:{match['tag']}@{digest}"

    def dockerfile(match: re.Match[str]) -> str:
        return f"{match['head']}{match['name']}={match['tag']}@{digests['python', match['tag']]}"

    return _DOCKERFILE.sub(dockerfile, _COMPOSE.sub(compose, text))


def digest_of(client: httpx.Client, image: Pin, *, scheme: str = "https") -> str:
    """The digest of what a tag names now.

    Raises:
        Unknown: the registry does not answer, has no such tag, or its manifest is not what its digest says.
    """
    url = f"{scheme}://{image.registry}/v2/{image.repository}/manifests/{image.tag}"
    headers = {"Accept": _ACCEPT}
    try:
        answer = client.get(url, headers=headers)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            headers["Authorization"] = f"Bearer {_token(client, answer.headers.get('www-authenticate', ''))}"
            answer = client.get(url, headers=headers)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise Unknown(f"{image.registry} does not say what {image.name}:{image.tag} is: {error}") from error
    digest = f"sha256:{sha256(answer.content).hexdigest()}"
    said = answer.headers.get("docker-content-digest", digest)
    if said != digest:
        raise Unknown(f"{image.registry} says that {image.name}:{image.tag} is {said}, and sends {digest}")
    return digest


def _token(client: httpx.Client, challenge: str) -> str:
    """An anonymous token, from where the registry says (https://distribution.github.io/distribution/spec/auth/token)."""
    fields = dict(_FIELD.findall(challenge))
    realm = fields.pop("realm", "")
    if not challenge.lower().startswith("bearer ") or urlsplit(realm).scheme not in ("http", "https"):
        raise Unknown(f"the registry asks for {challenge.partition(' ')[0] or 'nothing'}, which is no anonymous token")
    answer = client.get(realm, params=fields).raise_for_status().json()
    return str(answer.get("token") or answer["access_token"])


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT, scheme: str = "https") -> int:
    """Pin the images, or with `--check` say which tags have moved. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make images", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a tag has moved")
    check = parser.parse_args(arguments).check
    texts = {root / name: (root / name).read_text() for name in FILES}
    digests: dict[tuple[str, str], str] = {}
    moved = 0
    try:
        with httpx.Client(timeout=30, follow_redirects=True) as client:
            for image in dict.fromkeys(image for text in texts.values() for image in pins(text)):
                digest = digests[image.name, image.tag] = digest_of(client, image, scheme=scheme)
                moved += digest != image.digest
                print(f"{image.name}:{image.tag} {'is' if digest == image.digest else 'has become'} {digest}")  # noqa: T201
    except Unknown as error:
        print(f"{error}\nNothing was changed.", file=sys.stderr)  # noqa: T201
        return 2
    if check:
        return 1 if moved else 0
    for file, text in texts.items():
        file.write_text(pin(text, digests))
    return 0


if __name__ == "__main__":
    sys.exit(main())
