"""The injector's own certificates: a CA, and the serving certificate that it signs.

Law: pure values; no I/O. `next_keys` is the whole life cycle, in steps after each of which the API server trusts what
any replica serves:

    nothing → CA and certificate
    CA old → a new CA in front, the old one still trusted, the certificate unchanged
    certificate old → a new one by the CA in front; likewise if not by that CA, once all API servers trust it

P-256, which API servers of every version verify, and which signs in a tenth of a millisecond where RSA takes one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cached.contract.errors import Permanent

CA_LIFE = timedelta(days=365)
CERTIFICATE_LIFE = timedelta(days=90)
SPREAD = timedelta(minutes=10)  # until every API server and every replica has read a new CA
_BACKDATED = timedelta(minutes=5)  # for clocks that are slow
_FILES = ("ca.crt", "ca.key", "tls.crt", "tls.key")  # cert-manager's names

PrivateKey = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class CertificateKeys:
    """`authorities`: the CAs to trust, the newest first, whose key is `authority_key`."""

    authorities: tuple[x509.Certificate, ...]
    authority_key: PrivateKey
    certificate: x509.Certificate
    key: PrivateKey

    @property
    def bundle(self) -> bytes:
        """The CAs in PEM, for the webhook configuration's `caBundle`."""
        return b"".join(_pem(authority) for authority in self.authorities)

    @property
    def certificate_pem(self) -> bytes:
        return _pem(self.certificate)

    @property
    def key_pem(self) -> bytes:
        return _key_pem(self.key)

    def to_secret(self) -> dict[str, str]:
        """Return the `data` of a Secret."""
        contents = (self.bundle, _key_pem(self.authority_key), self.certificate_pem, self.key_pem)
        return {name: base64.b64encode(content).decode() for name, content in zip(_FILES, contents, strict=True)}

    @classmethod
    def from_secret(cls, data: Mapping[str, str]) -> CertificateKeys:
        """Parse the output of `to_secret`; raises `Permanent` (`invalid_secret`), whose message quotes none of it."""
        try:
            ca, ca_key, certificate, key = (base64.b64decode(data[name], validate=True) for name in _FILES)
            authorities = tuple(x509.load_pem_x509_certificates(ca))
            found = cls(authorities, _load_key(ca_key), x509.load_pem_x509_certificate(certificate), _load_key(key))
        except KeyError as error:
            raise _invalid(f"no {error.args[0]}") from error
        except (ValueError, TypeError, binascii.Error) as error:
            raise _invalid("expected certificates and keys in PEM, found something else") from error
        if authorities[0].public_key() != found.authority_key.public_key():
            raise _invalid("ca.key is not the key of its certificate")
        if found.certificate.public_key() != found.key.public_key():
            raise _invalid("tls.key is not the key of its certificate")
        return found


def next_keys(found: CertificateKeys | None, names: Sequence[str], now: datetime) -> CertificateKeys | None:
    """Return the keys that replace `found` for a server of these DNS names; None where `found` needs no change."""
    if found is None or _ended(found.authorities[0], now):
        authority, key = _make_authority(now)
        return CertificateKeys((authority,), key, *_make_certificate(authority, key, names, now))
    newest = found.authorities[0]
    if _old(newest, now) and not _ended(found.certificate, now):
        authority, key = _make_authority(now)
        kept = [old for old in found.authorities if not _ended(old, now)]
        return replace(found, authorities=(authority, *kept), authority_key=key)
    if _is_by(found.certificate, newest):
        due = _old(found.certificate, now)
    else:
        spread = now - (newest.not_valid_before_utc + _BACKDATED) >= SPREAD
        due = spread or _ended(found.certificate, now)
    if due or not _is_for(found.certificate, names):
        certificate, key = _make_certificate(newest, found.authority_key, names, now)
        return replace(found, certificate=certificate, key=key)
    return None


def _make_authority(now: datetime) -> tuple[x509.Certificate, PrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Two CAs of one name could be told apart only by trial.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"holdfast injector CA {now:%Y-%m-%dT%H:%M:%SZ}")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key, now, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _make_certificate(
    authority: x509.Certificate, authority_key: PrivateKey, names: Sequence[str], now: datetime
) -> tuple[x509.Certificate, PrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(now + CERTIFICATE_LIFE, authority.not_valid_after_utc)
    certificate = (
        _builder(x509.Name([]), authority.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # Critical, as the subject is empty (RFC 5280, 4.2.1.6): a DNS name may be longer than a common name.
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
    )


def _ended(certificate: x509.Certificate, now: datetime) -> bool:
    """Return whether it is not valid now: expired, or not valid yet as it was made by a fast clock."""
    return not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def _old(certificate: x509.Certificate, now: datetime) -> bool:
    """Return whether two thirds of its life have passed."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begin + (end - begin) * 2 / 3


def _is_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_for(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return set(names) <= set(found.get_values_for_type(x509.DNSName))


def _load_key(pem: bytes) -> PrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("expected a key on an elliptic curve")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _invalid(problem: str) -> Permanent:
    return Permanent(
        "invalid_secret", f"the certificate Secret: {problem}", "delete its data: the injector makes new ones"
    )
