"""Fixtures that several test files share."""

from __future__ import annotations

from goldens import exports

__all__ = ["exports"]
