"""Pictures of a recording of each class and of the network's spikes, as separate files."""

import logging

from tools.data.events.pictures import picture_recordings
from tools.evaluation.snapshot import Snapshot
from tools.inference import seeded_noise
from tools.probes.rasters import picture_spikes

from . import Measurement

logger = logging.getLogger(__name__)


class Pictures(Measurement):
    key = setting = "pictures"

    def run(self, snapshot: Snapshot) -> None:
        names, test = snapshot.dataset.classes, snapshot.test
        rasters, recordings = snapshot.folder.path / "rasters.png", snapshot.folder.path / "recordings.png"
        if not snapshot.dataset.has_pixels:
            picture_recordings(recordings, test, names)
            logger.info("written: %s", recordings)
        if not snapshot.has_neurons:
            logger.info("no rasters: %s has no spikes", snapshot.title)
            return
        title = f"{snapshot.title}, on {snapshot.dataset.name}"
        with seeded_noise(snapshot.device, snapshot.seed("pictures")):
            picture_spikes(rasters, snapshot.net.eval(), test, names, snapshot.forward, title)
        logger.info("written: %s", rasters)
