"""The life of the injector's certificates, told by a clock."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from cached.contract.errors import Permanent
from sidecar.injector.https.certificates import CA_LIFE, CERTIFICATE_LIFE, SPREAD, CertificateKeys, next_keys

NAMES = ("holdfast-injector.holdfast.svc", "holdfast-injector.holdfast.svc.cluster.local")
START = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)


def first() -> CertificateKeys:
    made = next_keys(None, NAMES, START)
    assert made is not None
    return made


def trusted(keys: CertificateKeys, certificate: x509.Certificate, at: datetime) -> bool:
    """Whether a client that trusts the bundle takes the certificate for our name then."""
    store = x509.verification.Store(list(x509.load_pem_x509_certificates(keys.bundle)))
    verifier = x509.verification.PolicyBuilder().store(store).time(at)
    try:
        verifier.build_server_verifier(x509.DNSName(NAMES[0])).verify(certificate, [])
    except x509.verification.VerificationError:
        return False
    return True


def test_the_first_certificate_is_trusted() -> None:
    """From nothing comes a certificate for every name, signed by a CA in the bundle; then there is nothing to do."""
    keys = first()
    assert trusted(keys, keys.certificate, START)
    found = keys.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert tuple(found.get_values_for_type(x509.DNSName)) == NAMES
    assert next_keys(keys, NAMES, START) is None


def test_openssl_takes_it() -> None:
    """OpenSSL finds CA, certificate and key to be as they must."""
    keys = first()
    context = ssl.create_default_context(cadata=keys.bundle.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert context.cert_store_stats()["x509_ca"] == 1


def test_a_certificate_is_renewed_after_two_thirds() -> None:
    """Before, it is left; after, the same CA signs another."""
    keys = first()
    assert next_keys(keys, NAMES, START + CERTIFICATE_LIFE * 2 / 3 - DAY) is None
    renewed = next_keys(keys, NAMES, START + CERTIFICATE_LIFE * 2 / 3 + DAY)
    assert renewed is not None
    assert renewed.authorities == keys.authorities and renewed.certificate != keys.certificate
    assert trusted(keys, renewed.certificate, START + CERTIFICATE_LIFE)


def test_other_names_need_another_certificate() -> None:
    """A service that is renamed gets a certificate for its name at once."""
    renewed = next_keys(first(), ("other.holdfast.svc",), START)
    assert renewed is not None and next_keys(renewed, ("other.holdfast.svc",), START) is None


def test_a_new_authority_is_trusted_before_it_signs() -> None:
    """An old CA gets a successor in the bundle; only after a while is the certificate the successor's."""
    now = START + CA_LIFE * 2 / 3 + DAY
    before = next_keys(first(), NAMES, now - 2 * DAY)
    assert before is not None
    both = next_keys(before, NAMES, now)
    assert both is not None
    assert both.authorities[1:] == before.authorities and both.certificate == before.certificate
    assert trusted(both, both.certificate, now)
    assert next_keys(both, NAMES, now + SPREAD / 2) is None
    moved = next_keys(both, NAMES, now + SPREAD)
    assert moved is not None
    assert moved.certificate != both.certificate and moved.authorities == both.authorities
    # A client with the bundle of the step before trusts what is served after it, and the other way round.
    assert trusted(both, moved.certificate, now + SPREAD) and trusted(moved, both.certificate, now + SPREAD)


def test_no_step_in_ten_years_breaks_trust() -> None:
    """Looking every day, each step's certificate is trusted by those who have seen only the step before."""
    keys, now = first(), START
    while now < START + 10 * CA_LIFE:
        now += DAY
        later = next_keys(keys, NAMES, now)
        if later is not None:
            assert trusted(keys, later.certificate, now) and trusted(later, keys.certificate, now)
            keys = later
        assert trusted(keys, keys.certificate, now)
        assert len(keys.authorities) <= 2


def test_after_a_long_absence_all_is_new() -> None:
    """Where the CA itself ended, nothing of it is kept."""
    keys = first()
    now = START + CA_LIFE + DAY
    made = next_keys(keys, NAMES, now)
    assert made is not None and made.authorities != keys.authorities and trusted(made, made.certificate, now)


def test_a_secret_holds_everything() -> None:
    """What goes into a Secret comes out the same."""
    keys = first()
    data = keys.to_secret()
    assert set(data) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    assert CertificateKeys.from_secret(data).to_secret() == data


@pytest.mark.parametrize("missing", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
def test_half_a_secret_is_refused(missing: str) -> None:
    """Nothing may be missing, and what is there must be what its name says."""
    data = first().to_secret()
    for bad in ({name: text for name, text in data.items() if name != missing}, {**data, missing: "bm8="}):
        with pytest.raises(Permanent) as caught:
            CertificateKeys.from_secret(bad)
        assert caught.value.code == "invalid_secret"


@pytest.mark.parametrize("name", ["ca.key", "tls.key"])
def test_a_key_of_another_certificate_is_refused(name: str) -> None:
    """Keys must be those of their certificates, and no message shows one."""
    other = first().to_secret()[name]
    with pytest.raises(Permanent) as caught:
        CertificateKeys.from_secret({**first().to_secret(), name: other})
    assert name in str(caught.value) and base64.b64decode(other).decode().split("\n")[1] not in str(caught.value)
