"""`fedscan prepare`: the intake's command; ctslices stands alone, so it is written there."""

from ctslices.command import prepare

__all__ = ["prepare"]
