"""Prices from a SkyPilot catalog, where one is on the machine."""

import pytest

from jaxlean.cost.skypilot import cheapest

HEAD = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region\n"


@pytest.fixture
def catalog(tmp_path):
    def write(cloud, *rows):
        folder = tmp_path / "v7" / cloud
        folder.mkdir(parents=True)
        (folder / "vms.csv").write_text(HEAD + "".join(f"{row}\n" for row in rows))

    write("aws", "p5.48xlarge,H100,8.0,192,2048,55.04,26.0,us-east-1", "g6.xlarge,L4,1.0,4,16,0.8,,us-east-1")
    write("lambda", "gpu_1x,H100,1,26,200,2.49,,eu", "broken,H100,one,,,x,y,", "other,,,8,32,0.4,0.1,eu")
    write(
        "gcp", "TPU-VM,tpu-v5litepod-8,1,,,9.6,4.8,us-west4", "TPU-VM,tpu-v4-8,1,,,12.8,5.2,us-central2",
        ",L4,1.0,,,0.1,0.05,us-east1",
    )  # fmt: skip
    return tmp_path


def test_the_cheapest_device_over_all_clouds(catalog):
    found = cheapest("H100", catalog)
    assert (found.usd_per_hour, found.usd_per_hour_spot) == (2.49, 26.0 / 8)
    assert found.source == "SkyPilot catalog, on demand: lambda eu, spot: aws us-east-1"


def test_without_a_spot_price(catalog):
    assert cheapest("l4", catalog).usd_per_hour_spot is None


def test_a_tpu_is_counted_in_chips(catalog):
    found = cheapest("tpu-v5litepod", catalog)
    assert (found.usd_per_hour, found.usd_per_hour_spot) == (1.2, 0.6)


def test_the_slices_of_some_generations_are_named_by_their_cores(catalog):
    assert cheapest("tpu-v4", catalog).usd_per_hour == 3.2


def test_a_card_without_its_machine_is_no_offer(catalog):
    assert cheapest("L4", catalog).usd_per_hour == 0.8


def test_nothing_known(catalog, tmp_path):
    assert cheapest("B200", catalog) is None
    assert cheapest("H100", tmp_path / "nowhere") is None
    (tmp_path / "v7" / "aws" / "vms.csv").write_bytes(b"\xff\xfe\x00bad")
    assert cheapest("L4", catalog) is None
