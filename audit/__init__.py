"""Tools that find what a model hides: differences between models, labels with scores, monitors, concepts that languages share.

from unweave.audit.diffing import diff                           # what changed between two models, latent by latent
from unweave.audit.labels import label                           # what a latent means, and how right that is elsewhere
from unweave.audit.monitor import Monitor                        # alarms at a stated false-alarm rate
from unweave.audit.shared_concepts import shared_concepts        # the same thing said in several ways
"""
