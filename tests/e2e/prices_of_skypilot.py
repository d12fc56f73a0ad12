"""What SkyPilot's own optimizer would launch: tasks' ``resources`` as JSON on stdin, and for each one line of
``[[cloud, region, zone, instance type, dollars per hour], ...]``. Catalogs are those below ``$HOME``."""

from __future__ import annotations

import json
import sys
from typing import Any

import sky
from sky import clouds, optimizer
from sky.catalog import aws_catalog
from sky.utils import resources_utils


def places(resources: dict[str, Any]) -> list[tuple[str, str | None, str | None, str, float]]:
    task = sky.Task.from_yaml_config({"run": "true", "resources": resources})
    launchable, *_ = optimizer._fill_in_launchable_resources(task, None, quiet=True)
    return [
        (str(one.cloud).lower(), one.region, one.zone, one.instance_type, one.get_cost(3600))
        for found in launchable.values()
        for each in found
        for one in resources_utils.make_launchables_for_valid_region_zones(each)
    ]


# There is no account here: AWS is taken to be enabled, and its zones go by their ids.
optimizer.sky_check.get_cached_enabled_clouds_or_refresh = lambda *_, **__: [clouds.AWS()]
aws_catalog._fetch_and_apply_az_mapping = lambda frame: frame._load_df()
for asked in json.load(sys.stdin):
    print(json.dumps(places(asked)))
