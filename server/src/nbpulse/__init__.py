"""nbpulse: shows a teacher, live, how a programming class in Jupyter is doing."""

__version__ = "0.1.0"
