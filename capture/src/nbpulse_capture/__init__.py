"""What a student's Jupyter installs so that the teacher sees how the class is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
