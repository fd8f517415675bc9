"""Keep other libraries from talking over our tables."""

import logging
import warnings


def hush() -> None:
    """Leave errors, drop the chatter of Lightning and of loaders about choices that are ours."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*Experiment logs directory.*",
        ".*lr_scheduler.step\\(\\).*before.*optimizer.step\\(\\).*",
        ".*No audio backend.*",
    ):
        warnings.filterwarnings("ignore", message)
