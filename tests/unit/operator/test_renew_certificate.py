"""The certificate that the chart's Job makes: good for pods of any Python, and known when it is not."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tunery_operator.client.permissions import CERTIFICATE_PERMISSIONS, OPERATOR_PERMISSIONS
from tunery_operator.tools.renew_certificate import Files, Unusable, check, main, make

from kit.operator.reporting import Pods, Site

HOST = "tunery.tunery-system.svc"
NOW = datetime.now(UTC)


async def test_pods_that_trust_its_authority_reach_the_endpoint_by_its_name_and_by_no_other(tmp_path: Path) -> None:
    files = make(HOST, 3650, NOW)
    check(files, HOST, NOW)
    for name, pem in zip(("ca.crt", "tls.crt", "tls.key"), files, strict=True):
        (tmp_path / name).write_bytes(pem)
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    # What Python 3.13 asks of a certificate by default.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    async with Site(tmp_path, Pods(set())) as site:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=context, server_hostname=HOST)
        writer.close()
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await asyncio.open_connection("127.0.0.1", site.port, ssl=context, server_hostname="other.svc")


GOOD, OTHER, SHORT = make(HOST, 3650, NOW), make(HOST, 3650, NOW), make(HOST, 7, NOW)


@pytest.mark.parametrize(
    ("files", "host", "later", "why"),
    [
        pytest.param(GOOD, "other.svc", 0, "it is not for other.svc", id="host"),
        pytest.param(GOOD._replace(key=OTHER.key), HOST, 0, "its key does not match", id="key"),
        pytest.param(GOOD._replace(ca=OTHER.ca), HOST, 0, "no authority in ca.crt has issued it", id="authority"),
        pytest.param(GOOD, HOST, 3621, "it expires soon, or has expired: ", id="soon-over"),
        pytest.param(SHORT, HOST, 5, "it expires soon, or has expired: ", id="last-third"),
        pytest.param(SHORT, HOST, 8, "it expires soon, or has expired: ", id="over"),
        pytest.param(GOOD._replace(certificate=b"x"), HOST, 0, "it cannot be read", id="no-certificate"),
        pytest.param(GOOD._replace(key=b""), HOST, 0, "it cannot be read", id="no-key"),
        pytest.param(GOOD._replace(certificate=GOOD.ca), HOST, 0, "it cannot be read", id="names-no-host"),
    ],
)
def test_what_pods_could_not_talk_to_is_unusable(files: Files, host: str, later: int, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        check(files, host, NOW + timedelta(days=later))


@pytest.mark.parametrize(("days", "later"), [(1, 0.5), (7, 4), (29, 19), (90, 59), (3650, 3619)])
def test_what_was_just_made_is_kept_for_two_thirds_of_its_life_or_until_thirty_days_are_left(
    days: int, later: float
) -> None:
    check(make(HOST, days, NOW), HOST, NOW + timedelta(days=later))


@pytest.mark.parametrize("days", ["0", "-1", "36501", "x", ""])
def test_a_life_of_less_than_a_day_is_refused_before_anything_is_made(
    days: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--namespace=n", "--secret=s", f"--host={HOST}", f"--days={days}"])
    assert ended.value.code == 2
    assert f"argument --days: {days} is not from 1 to 36500: set progress.certificate.days" in capsys.readouterr().err


def test_two_authorities_that_stand_for_each_other_are_kept() -> None:
    check(GOOD._replace(ca=OTHER.ca + GOOD.ca), HOST, NOW + timedelta(days=3600))


def test_the_operators_own_client_may_get_at_no_secret() -> None:
    assert not CERTIFICATE_PERMISSIONS & OPERATOR_PERMISSIONS
    assert {call.resource for call in CERTIFICATE_PERMISSIONS} == {"secrets"}
    assert "secrets" not in {call.resource for call in OPERATOR_PERMISSIONS}
