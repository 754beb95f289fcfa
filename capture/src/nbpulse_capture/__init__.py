"""What a student's Jupyter installs so that the teacher sees how the class is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__version__ = "0.1.0"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext nbpulse_capture`, where no configuration file loads it by itself."""
    from nbpulse_capture import kernel

    kernel.load_ipython_extension(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """`%unload_ext nbpulse_capture`."""
    from nbpulse_capture import kernel

    kernel.unload_ipython_extension(shell)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """What Jupyter Server asks a package that its configuration names."""
    from nbpulse_capture.server_extension import CaptureExtension

    return [{"module": "nbpulse_capture.server_extension", "app": CaptureExtension}]
