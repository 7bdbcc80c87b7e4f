"""`fedscan inspect`: the intake's command; ctslices stands alone, so it is written there."""

from ctslices.command import inspect

__all__ = ["inspect"]
