"""Settings come from NBPULSE_* variables, checked, with units in their names."""

from pathlib import Path

import pytest

from nbpulse.errors import StartupError
from nbpulse.settings import Settings, read_settings


def test_values_are_read_as_their_kind() -> None:
    settings = read_settings(
        {
            "NBPULSE_PORT": "9000",
            "NBPULSE_CLAIM_IDLE_S": "2.5",
            "NBPULSE_PROMISE_STATED": "True",
            "NBPULSE_TLS_CERT": "/etc/cert.pem",
            "NBPULSE_DATA_DIR": "/srv/nbpulse",
            "NBPULSE_SOMETHING_ELSE": "ignored",
            "PORT": "1",
        }
    )
    assert (settings.port, settings.claim_idle_s, settings.promise_stated) == (9000, 2.5, True)
    assert (settings.tls_cert, settings.data_dir) == (Path("/etc/cert.pem"), Path("/srv/nbpulse"))


def test_what_is_unset_or_empty_has_its_default() -> None:
    assert read_settings({"NBPULSE_PUBLIC_URL": "", "NBPULSE_DATA_DIR": "/x"}) == Settings(data_dir=Path("/x"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("PORT", "many"), ("PROMISE", "everything"), ("CLAIM_IDLE_S", "0"), ("WORKER_NAME", "x" * 61)],
)
def test_a_bad_value_is_refused_with_its_name(name: str, value: str) -> None:
    with pytest.raises(StartupError, match="NB-3057") as refused:
        read_settings({f"NBPULSE_{name}": value})
    assert name.lower() in refused.value.title("en")
