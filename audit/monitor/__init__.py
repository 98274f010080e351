"""Watch texts and chats by latents or probes: scores, thresholds with a stated false-alarm rate, drift, and their controls."""

from .calibrate import Calibration, calibrate, needed
from .controls import Controlled, control
from .drift import Drift, drift
from .items import Watched, read_items, watch
from .monitor import Conversation, Monitor, Scored
from .probes import train_probe
from .signals import Latents, Probe

__all__ = [
    "Calibration",
    "Controlled",
    "Conversation",
    "Drift",
    "Latents",
    "Monitor",
    "Probe",
    "Scored",
    "Watched",
    "calibrate",
    "control",
    "drift",
    "needed",
    "read_items",
    "train_probe",
    "watch",
]
