"""The questions to SageMaker's API, by botocore: the versions of a group, and one of them.

Law: bounded in time; botocore's errors become ours, and quote no key and no token. An answer without what it must have
is `bad_response`: botocore takes a page for an answer without members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.session
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from cached.contract.errors import HoldfastError, Permanent, Transient, http_code
from cached.sources.aws_answers import STRANGE, bound_answers
from cached.sources.oauth import quoted
from cached.sources.sagemaker.address import SageMakerAddress
from cached.transport.errors import is_retried

_CONNECT_S, _READ_S = 4, 10  # twice: a host that cannot be reached is told within 10 s
_MAX_PAGES = 100
_APPROVED = "Approved"
_SIGN_IN = (
    "give the pod a role (IRSA: annotate its service account), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "name a profile"
)
_UNAUTHORIZED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"}
    | {"InvalidSignatureException", "SignatureDoesNotMatch", "MissingAuthenticationToken", "IncompleteSignature"}
)
_CREDENTIALS = (
    *(boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound),
    *(boto.InvalidConfigError, boto.ConfigParseError, boto.TokenRetrievalError, boto.SSOError),
)


class PackageRegistry:
    """The registry of one location. Each method blocks, and raises `HoldfastError`."""

    def __init__(self, address: SageMakerAddress) -> None:
        self._address = address
        with self._translated():
            session = botocore.session.Session(profile=address.profile)
            settings = Config(connect_timeout=_CONNECT_S, read_timeout=_READ_S, retries={"total_max_attempts": 2})
            self._client = session.create_client("sagemaker", region_name=address.region, config=settings)
            bound_answers(session, self._client, _CONNECT_S, _READ_S)

    def find(self) -> dict[str, Any]:
        """Return the description of the version that is named, or of the newest that is approved. Raises `Permanent`
        (`not_found`, `not_approved`), `Transient` (`not_ready`)."""
        summary = self._named() if self._address.version is not None else self._newest()
        with self._translated():
            found = self._client.describe_model_package(ModelPackageName=str(summary.get("ModelPackageArn")))
        if not found.get("ModelPackageArn") or "ModelPackageStatus" not in found:
            raise self.bad_answer("a model package")
        self._check(found)
        return dict(found)

    def bad_answer(self, expected: str) -> Transient:
        """Return the error of an answer without what it must have."""
        return Transient(
            "bad_response",
            f"{self._address.location}: expected {expected} in SageMaker's answer, found another one",
            "check AWS_ENDPOINT_URL_SAGEMAKER, and a proxy in between",
        )

    def _newest(self) -> dict[str, Any]:
        for page in self._pages(ModelApprovalStatus=_APPROVED):
            if page:
                return max(page, key=self._number)
        raise Permanent(
            "not_found",
            f"{self._address.location}: expected an approved version in the group {self._address.group}, found none",
            "approve one (`aws sagemaker update-model-package --model-approval-status Approved`), or name a version",
        )

    def _named(self) -> dict[str, Any]:
        for page in self._pages():
            for summary in page:
                if self._number(summary) == self._address.version:
                    return summary
        problem = f"{self._address.location}: there is no version {self._address.version} in this group"
        raise Permanent("not_found", problem, "`aws sagemaker list-model-packages` has its versions")

    def _pages(self, **more: str) -> Iterator[list[dict[str, Any]]]:
        """Yield the versions of the group, newest first, page by page."""
        token: dict[str, str] = {}
        for _ in range(_MAX_PAGES):
            with self._translated():
                found = self._client.list_model_packages(
                    ModelPackageGroupName=self._address.asked,
                    ModelPackageType="Versioned",
                    SortBy="CreationTime",
                    SortOrder="Descending",
                    **more,
                    **token,
                )
            page = found.get("ModelPackageSummaryList")
            if page is None:
                raise self.bad_answer("a list of model packages")
            yield page
            if not found.get("NextToken"):
                return
            token = {"NextToken": found["NextToken"]}
        raise self.bad_answer(f"at most {_MAX_PAGES} pages")

    def _number(self, summary: dict[str, Any]) -> int:
        version = summary.get("ModelPackageVersion")
        if not isinstance(version, int):
            raise self.bad_answer("the number of a version")
        return version

    def _check(self, found: dict[str, Any]) -> None:
        status, approval = found["ModelPackageStatus"], found.get("ModelApprovalStatus", _APPROVED)
        shown = f"{self._address.location}: expected a completed and approved version, found {status}, {approval}"
        if status in ("Pending", "InProgress") or approval == "PendingManualApproval":
            raise Transient("not_ready", shown, "it is asked for again until it is approved")
        if status != "Completed":
            raise Permanent("not_found", shown, "register the model again, or name another version")
        if approval != _APPROVED:
            raise Permanent("not_approved", shown, "approve it, or name another version")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (boto.BotoCoreError, boto.ClientError, ResponseParserError, OSError, *STRANGE) as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> HoldfastError:
        where = self._address.location
        if isinstance(error, boto.ClientError):
            return self._answered(error)
        said = f"{type(error).__name__}: {quoted(str(error))}"
        if isinstance(error, _CREDENTIALS):
            return Permanent("unauthorized", f"{where}: no usable AWS credentials ({said})", _SIGN_IN)
        if isinstance(error, boto.NoRegionError):
            problem = f"{where}: expected a region, found none"
            return Permanent("bad_source", problem, "add ?region=… to the location, or set AWS_DEFAULT_REGION")
        if isinstance(error, (boto.ParamValidationError, boto.InvalidRegionError)):
            return Permanent("bad_source", f"{where}: {said}", "correct the location")
        if isinstance(error, (ResponseParserError, *STRANGE)):
            return self.bad_answer("JSON")
        return Transient("connect", f"{where}: SageMaker did not answer ({said})", "check the region and the network")

    def _answered(self, error: boto.ClientError) -> HoldfastError:
        answer = error.response
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = quoted(f"{code}: {answer.get('Error', {}).get('Message', '')}".rstrip(": "))
        shown = f"{self._address.location}: SageMaker answered {status} ({said})"
        if code in _UNAUTHORIZED or status == 401:
            return Permanent("unauthorized", shown, _SIGN_IN)
        if code.startswith("AccessDenied") or status == 403:
            remedy = "allow sagemaker:ListModelPackages and sagemaker:DescribeModelPackage to this role"
            return Permanent("forbidden", shown, f"{remedy}; and s3:GetObject and s3:ListBucket on the bucket")
        if "Throttl" in code or is_retried(status):
            return Transient(
                http_code(status), shown, "it is tried again; if it stays so, look at the account's limits"
            )
        if code == "ValidationException" or status == 404:
            return Permanent("not_found", shown, "check the group's name, the region and the account")
        return Permanent(http_code(status), shown, "check the location")
