"""undula: continuous-time forecasting of molecular motion."""

__version__ = "0.1.0"
