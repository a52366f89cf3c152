"""The object plane: tensors in shared memory, written once, and clients' own regions."""

from anyserve.objects.arena import Arena, ArenaFull, ArenaStatistics
from anyserve.objects.leases import Block, Lease, LeaseError, LeaseSet
from anyserve.objects.mapping import Reader, ReaderStatistics
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import RegionRef, Regions, RegionStatus, check_overlaps
from anyserve.objects.segments import new_prefix, segments_of, sweep, unlink_all

__all__ = [
    "Arena",
    "ArenaFull",
    "ArenaStatistics",
    "Block",
    "Lease",
    "LeaseError",
    "LeaseSet",
    "Reader",
    "ReaderStatistics",
    "RegionFiles",
    "RegionRef",
    "RegionStatus",
    "Regions",
    "check_overlaps",
    "new_prefix",
    "segments_of",
    "sweep",
    "unlink_all",
]
