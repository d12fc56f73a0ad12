"""What SkyPilot knows of AWS in the rig: instance types, prices, zones, machine images.

SkyPilot's catalogs are CSV files under ``~/.sky/catalogs/v8``. One that has no ``.meta/FILE.md5`` beside it
counts as changed by hand and is never fetched (``sky/catalog/common.py``). Its zones are zone *ids*, which
SkyPilot joins with what DescribeAvailabilityZones answers, so they are ids that moto knows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """An instance type; prices in dollars per hour in the first region."""

    name: str
    vcpus: int
    memory_gib: int
    on_demand: float
    spot: float
    gpu: str = ""
    gpus: int = 0


# Zone name -> zone id. Prices rise a little from zone to zone, so that the cheapest place is one place.
REGIONS = {
    "us-east-1": {"us-east-1a": "use1-az6", "us-east-1b": "use1-az1", "us-east-1c": "use1-az2"},
    "us-west-2": {"us-west-2a": "usw2-az2", "us-west-2b": "usw2-az1"},
}
IMAGES = {"us-east-1": "ami-0e6842148a3d9982b", "us-west-2": "ami-0289552b2bfbae70a"}
KINDS = (
    Kind("m6i.large", 2, 8, 0.096, 0.035),
    Kind("m6i.xlarge", 4, 16, 0.192, 0.07),
    Kind("m6i.2xlarge", 8, 32, 0.384, 0.14),
    Kind("g5.xlarge", 4, 16, 1.006, 0.40, "A10G", 1),
    Kind("p5.4xlarge", 16, 256, 6.88, 2.60, "H100", 1),
    Kind("p5.48xlarge", 192, 2048, 55.04, 20.80, "H100", 8),
)
_GPU_MIB = {"A10G": 24576, "H100": 81920}
_TAGS = ("skypilot:custom-cpu-ubuntu", "skypilot:custom-gpu-ubuntu", "skypilot:custom-gpu-ubuntu-cuda13")
_FARTHER = 1.05  # what the second region costs, relative to the first


def write(home: Path) -> None:
    """Write the catalogs into the rig's HOME."""
    folder = home / ".sky" / "catalogs" / "v8"
    _csv(folder / "aws" / "vms.csv", [_VMS, *_vms()])
    _csv(
        folder / "aws" / "images.csv",
        [
            ["Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId"],
            *([tag, region, "ubuntu", "22.04", IMAGES[region], "20241104", ""]
              for tag in _TAGS for region in REGIONS),
        ],
    )  # fmt: skip
    _csv(
        folder / "aws" / "instance_quota_mapping.csv",
        [["InstanceType", "OnDemandInstanceCode", "SpotInstanceCode"]]
        + [[kind.name, "L-1216C47A", "L-34B43A08"] for kind in KINDS],
    )


def write_images(path: Path) -> None:
    """The machine images as moto reads them (``MOTO_AMIS_PATH``): SkyPilot looks up their root device."""
    common = {
        "state": "available", "public": True, "owner_id": "123456789012", "image_location": "rig",
        "sriov": "simple", "root_device_type": "ebs", "root_device_name": "/dev/sda1", "description": "rig",
        "image_type": "machine", "platform": None, "architecture": "x86_64", "virtualization_type": "hvm",
        "hypervisor": "xen",
    }  # fmt: skip
    images = [{**common, "ami_id": image, "name": f"rig-{image}"} for image in IMAGES.values()]
    path.write_text(json.dumps(images))


_VMS = ["InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo",
        "Price", "SpotPrice", "Region", "AvailabilityZone", "Arch"]  # fmt: skip


def _vms() -> list[list[object]]:
    rows: list[list[object]] = []
    for kind in KINDS:
        for region, zones in REGIONS.items():
            factor = 1.0 if region == "us-east-1" else _FARTHER
            for number, zone_id in enumerate(zones.values()):
                spot = kind.spot * factor * (1 + 0.02 * number)
                rows.append([
                    kind.name, kind.gpu, float(kind.gpus) if kind.gpu else "", float(kind.vcpus),
                    float(kind.memory_gib), _gpu_info(kind), round(kind.on_demand * factor, 4),
                    round(spot, 4), region, zone_id, "x86_64",
                ])  # fmt: skip
    return rows


def _gpu_info(kind: Kind) -> str:
    if not kind.gpu:
        return ""
    size = _GPU_MIB[kind.gpu]
    gpu = {"Name": kind.gpu, "Manufacturer": "NVIDIA", "Count": kind.gpus, "MemoryInfo": {"SizeInMiB": size}}
    return str({"Gpus": [gpu], "TotalGpuMemoryInMiB": size * kind.gpus})


def _csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
