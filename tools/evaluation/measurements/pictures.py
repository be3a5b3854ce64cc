"""Pictures of a test sample of each class, and of the network's spikes; nothing for the report."""

import logging

from tools.evaluation.snapshot import Snapshot
from tools.networks import seeded_noise

from .measurement import Measurement

logger = logging.getLogger(__name__)


class Pictures(Measurement):
    key = setting = "pictures"

    def run(self, snapshot: Snapshot) -> None:
        self.measure(snapshot)

    def measure(self, snapshot: Snapshot) -> None:
        from tools.data.events.pictures import picture_recordings  # they import matplotlib
        from tools.probes.rasters import picture_spikes

        names, folder, test = snapshot.dataset.classes, snapshot.folder.path, snapshot.test
        if not snapshot.dataset.has_pixels:
            picture_recordings(folder / "recordings.png", test, names)
            logger.info("written: %s", folder / "recordings.png")
        title = f"{snapshot.title}, on {snapshot.dataset.name}"
        with seeded_noise(snapshot.device, snapshot.seed("pictures")):
            picture_spikes(folder / "rasters.png", snapshot.net.eval(), test, names, snapshot.forward, title)
        logger.info("written: %s", folder / "rasters.png")
