"""Model packages of Amazon SageMaker: `sagemaker:group` (the newest version that is approved), `sagemaker:group/3`, and
both by their ARNs (`sagemaker:arn:aws:sagemaker:…:model-package-group/group`), with these parameters:

| parameter | meaning |
| --- | --- |
| `region`, `profile` | of SageMaker and of the bucket; else the ARN's, `AWS_DEFAULT_REGION`, `AWS_PROFILE` |
| `container` | which container of an inference pipeline, from 0; needed where a package has several |

Law: pure. No parameter takes a key, and a location with one is refused without being quoted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cached.contract.errors import Permanent
from cached.sources.location import parse_parameters

_PARAMETERS = ("container", "profile", "region")
_ARN = re.compile(r"arn:aws[a-z-]*:sagemaker:([a-z0-9-]+):\d{12}:(model-package-group|model-package)/(.+)")
_GROUP = re.compile(r"[A-Za-z0-9](?:-*[A-Za-z0-9]){0,62}")


@dataclass(frozen=True, slots=True)
class SageMakerAddress:
    """`asked`: the group as SageMaker is asked for it, its name or its ARN (of another account); `version`: None: the
    newest that is approved; `container`: None: the only one."""

    location: str
    group: str
    asked: str
    version: int | None
    region: str | None
    profile: str | None
    container: int | None

    @classmethod
    def parse(cls, uri: str) -> SageMakerAddress:
        """Parse a location. Raises `Permanent` (`bad_source`)."""
        location, _, query = uri.partition("?")
        scheme, _, rest = location.partition(":")
        if scheme.lower() != "sagemaker" or not rest or rest.startswith("/"):
            raise _refuse("expected sagemaker:group, without slashes after the colon")
        region, named, asked = None, rest.rstrip("/"), None
        if named.startswith("arn:"):
            arn = _ARN.fullmatch(named)
            if arn is None:
                raise _refuse("expected the ARN of a model package group, or of a version, found another one")
            region, kind, named = arn[1], arn[2], arn[3]
            asked = location[len(scheme) + 1 :].partition(":model-package")[0] + f":model-package-group/{named}"
            asked = asked if kind == "model-package-group" else asked.rpartition("/")[0]
        group, slash, version = named.partition("/")
        if not _GROUP.fullmatch(group):
            raise _refuse(f"expected the name of a model package group (letters, digits, `-`), found {group[:100]!r}")
        if slash and not (version.isascii() and version.isdecimal() and len(version) < 10):
            raise _refuse(f"expected the number of a version after {group}/, found {version[:100]!r}")
        given = parse_parameters(query, _PARAMETERS, {}, _refuse)
        container = given.get("container")
        if container is not None and not (container.isascii() and container.isdecimal() and len(container) < 5):
            raise _refuse("container: expected a number from 0 to 9999")
        return cls(
            location,
            group,
            asked or group,
            int(version) if slash else None,
            given.get("region", region),
            given.get("profile"),
            None if container is None else int(container),
        )


def _refuse(message: str) -> Permanent:
    return Permanent(
        "bad_source",
        f"SageMaker location: {message}",
        "write it as sagemaker:group, sagemaker:group/3 or sagemaker:arn:aws:sagemaker:…, with ?region=… where the "
        "environment has none; credentials belong in the environment, a profile or IRSA",
    )
