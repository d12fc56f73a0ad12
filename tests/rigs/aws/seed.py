"""Make moto's empty account look like one that SkyPilot can use: a VPC, a role, a bucket."""

from __future__ import annotations

import json
from typing import Any

from tests.rigs.aws.catalogs import REGIONS
from tests.rigs.aws.network import Network

VPC = "nemo-sky-rig"
ROLE = "skypilot-v1"  # SkyPilot's own name; made beforehand it saves two waits of 15 s


def seed(endpoint: str, where: Network, bucket: str) -> None:
    """In each region a VPC with a private subnet in each zone; the role; the bucket.

    The subnets are private (no internet gateway), so SkyPilot with ``use_internal_ips`` gives instances
    one address each, of the rig's own network.
    """
    import boto3

    session = boto3.Session(aws_access_key_id="fake", aws_secret_access_key="fake")
    for number, (region, zones) in enumerate(REGIONS.items()):
        ec2 = session.client("ec2", region_name=region, endpoint_url=endpoint)
        block = where.vpc(number)
        vpc = ec2.create_vpc(CidrBlock=str(block), TagSpecifications=_name("vpc"))["Vpc"]["VpcId"]
        for zone, subnet in zip(zones, block.subnets(new_prefix=20), strict=False):
            ec2.create_subnet(
                VpcId=vpc,
                CidrBlock=str(subnet),
                AvailabilityZone=zone,
                TagSpecifications=_name("subnet"),
            )
    iam = session.client("iam", region_name="us-east-1", endpoint_url=endpoint)
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
    }
    iam.create_instance_profile(InstanceProfileName=ROLE)
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))
    iam.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)
    session.client("s3", region_name="us-east-1", endpoint_url=endpoint).create_bucket(Bucket=bucket)


def _name(resource: Any) -> list[Any]:
    return [{"ResourceType": resource, "Tags": [{"Key": "Name", "Value": VPC}]}]
