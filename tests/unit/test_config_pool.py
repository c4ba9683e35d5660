"""batch.json becomes a PoolConfig, or an error that says all that is wrong."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_batchwrap.config import PoolConfig, StartTaskConfig
from airflow_batchwrap.exceptions import ConfigError

SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n"
IMAGE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/galleries/x/images/y"


def error(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        PoolConfig.from_dict(data)
    return str(caught.value)


def test_the_default_is_one_small_node_with_a_current_image() -> None:
    config = PoolConfig()
    assert (config.vm_size, config.total_nodes, config.nodes_needed) == ("Standard_D2s_v3", 1, 1)
    assert (config.image_publisher, config.image_offer, config.image_sku) == ("canonical", "ubuntu-24_04-lts", "server")
    assert config.node_agent == "batch.node.ubuntu 24.04"
    assert config.to_dict() == {}


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(PoolConfig(), "vm_size", "Standard_D4s_v3")  # noqa: B010 - a type checker refuses it already


@pytest.mark.parametrize(
    ("given", "nodes"),
    [
        ({}, (1, 0)),
        ({"target_spot_nodes": 3}, (0, 3)),
        ({"target_low_priority_nodes": 3}, (0, 3)),
        ({"target_dedicated_nodes": 2, "target_spot_nodes": 3}, (2, 3)),
        ({"target_dedicated_nodes": "2"}, (2, 0)),
        ({"BATCH_NODE_COUNT": 4}, (4, 0)),
        ({"_POOL_NODE_COUNT": "4"}, (4, 0)),
        ({"_DEDICATED_POOL_NODE_COUNT": 1, "_LOW_PRIORITY_POOL_NODE_COUNT": 2}, (1, 2)),
    ],
)
def test_nodes_are_counted_by_any_name(given: dict[str, Any], nodes: tuple[int, int]) -> None:
    config = PoolConfig.from_dict(given)
    assert (config.target_dedicated_nodes, config.target_low_priority_nodes) == nodes
    assert config.total_nodes == sum(nodes)


def test_fewer_nodes_may_be_enough() -> None:
    assert PoolConfig(target_dedicated_nodes=5, min_nodes=2).nodes_needed == 2
    assert "min_nodes = 6 is more than the 5 nodes" in error({"target_dedicated_nodes": 5, "min_nodes": 6})


def test_a_pool_of_no_nodes_is_refused() -> None:
    assert "nothing would ever run" in error({"target_dedicated_nodes": 0})


def test_a_file_of_the_predecessor_is_read_with_its_keys() -> None:
    config = PoolConfig.from_dict(
        {
            "BATCH_NODE_COUNT": 2,
            "BATCH_VM_SIZE": "Standard_D4s_v3",
            "BATCH_OS_PUBLISHER": "Canonical",
            "BATCH_OS_TYPE": "0001-com-ubuntu-server-jammy",
            "BATCH_OS_VERSION": "22_04-lts",
            "BATCH_ENGINE_NAME": "azbatchengine.py",
            "BATCH_DEBUG_MODE": "false",
        }
    )
    assert config.to_dict() == {
        "target_dedicated_nodes": 2,
        "vm_size": "Standard_D4s_v3",
        "image_publisher": "Canonical",
        "image_offer": "0001-com-ubuntu-server-jammy",
        "image_sku": "22_04-lts",
    }
    assert config.node_agent == "batch.node.ubuntu 22.04"


@pytest.mark.parametrize(
    ("publisher", "offer", "sku"),
    [
        ("Canonical", "UbuntuServer", 16),
        ("Canonical", "UbuntuServer", "18.04-LTS"),
        ("canonical", "0001-com-ubuntu-server-focal", "20_04-lts"),
        ("OpenLogic", "CentOS", "7.7"),
        ("microsoft-azure-batch", "ubuntu-server-container", "20-04-lts"),
    ],
)
def test_an_image_that_azure_no_longer_has_is_told_with_the_one_to_use(publisher: str, offer: str, sku: Any) -> None:
    message = error({"BATCH_OS_PUBLISHER": publisher, "BATCH_OS_TYPE": offer, "BATCH_OS_VERSION": sku})
    assert f"{publisher} {offer} {sku}" in message
    assert "ubuntu-24_04-lts" in message


def test_a_windows_image_is_refused_because_steps_run_on_linux() -> None:
    message = error(
        {"image_publisher": "MicrosoftWindowsServer", "image_offer": "WindowsServer", "image_sku": "2022-datacenter"}
    )
    assert "steps run on Linux nodes" in message


@pytest.mark.parametrize("size", ["BASIC_A1", "Basic_A4", "Standard_A1", "STANDARD_A7"])
def test_a_size_that_azure_has_retired_is_told_with_one_to_use(size: str) -> None:
    assert "Standard_D2s_v3" in error({"BATCH_VM_SIZE": size})


@pytest.mark.parametrize(
    "size", ["Standard_A1_v2", "STANDARD_D2S_V3", "Standard_E8-4ds_v5", "Standard_NC24ads_A100_v4"]
)
def test_current_sizes_are_taken(size: str) -> None:
    assert PoolConfig(vm_size=size).vm_size == size


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_publisher": "almalinux"}, "image_sku is missing"),
        ({"image_offer": "debian-12"}, "image_sku is missing"),
        ({"image_publisher": "almalinux", "image_sku": "9-gen2"}, "image_offer is missing"),
        ({"image_id": IMAGE, "image_sku": "server", "node_agent_sku_id": "batch.node.el 9"}, "are two images"),
        ({"image_id": IMAGE}, "node_agent_sku_id is missing"),
        ({"image_id": "my-image", "node_agent_sku_id": "batch.node.el 9"}, "whole resource id"),
    ],
)
def test_half_an_image_is_refused(given: dict[str, Any], words: str) -> None:
    assert words in error(given)


def test_images_have_their_node_agent() -> None:
    assert PoolConfig(image_sku="minimal").node_agent == "batch.node.ubuntu 24.04"
    assert PoolConfig(image_id=IMAGE, node_agent_sku_id="batch.node.el 9").node_agent == "batch.node.el 9"
    other = PoolConfig(image_publisher="almalinux", image_offer="almalinux-x86_64", image_sku="9-gen2")
    assert other.node_agent == "batch.node.el 9"
    assert PoolConfig(image_publisher="p", image_offer="o", image_sku="s").node_agent is None


def test_one_key_by_two_names_is_an_error_only_if_the_values_differ() -> None:
    assert PoolConfig.from_dict({"BATCH_NODE_COUNT": "2", "target_dedicated_nodes": 2}).total_nodes == 2
    message = error({"BATCH_NODE_COUNT": 3, "target_dedicated_nodes": 2})
    assert "BATCH_NODE_COUNT" in message
    assert "target_dedicated_nodes" in message


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("vmsize", "vm_size"),
        ("vmSize", "vm_size"),
        ("targetDedicatedNodes", "target_dedicated_nodes"),
        ("taskSlotsPerNode", "task_slots_per_node"),
        ("target_dedicated_node", "target_dedicated_nodes"),
        ("BATCH_VMSIZE", "BATCH_VM_SIZE"),
        ("TARGET_DEDICATED_NODES", "target_dedicated_nodes"),
    ],
)
def test_a_key_that_is_nearly_right_is_told_with_the_right_one(key: str, meant: str) -> None:
    assert f"{key} is not a key: did you mean {meant}?" in error({key: "x"})


def test_a_key_that_belongs_elsewhere_is_told_where() -> None:
    assert "BatchWorkflow(..., pool_id=...)" in error({"BATCH_POOL_ID": "azpool_1558014841"})
    message = error({"BATCH_ACCOUNT_KEY": "c2VjcmV0"})
    assert "connections" in message
    assert "c2VjcmV0" not in message


def test_all_problems_are_told_at_once() -> None:
    message = error(
        {
            "target_dedicated_nodes": "two",
            "task_slots_per_node": 257,
            "node_fill_type": "Packed",
            "inter_node_communication": "perhaps",
            "resize_timeout": "1 min",
            "pool_wait_timeout": 30,
            "subnet_id": "default",
            "metadata": ["a"],
            "start_task": {"command": "x"},
            "colour": "red",
            "vm_size": "D2 v3",
            "idle_minutes": True,
        }
    )
    wanted = {
        "target_dedicated_nodes = 'two': use a whole number",
        "task_slots_per_node = 257",
        "node_fill_type = 'packed'",
        "inter_node_communication = 'perhaps': use true or false",
        "resize_timeout = '1 min': Batch takes no less than 5 minutes",
        "pool_wait_timeout = 30: a number alone has no unit",
        "subnet_id = 'default': use the whole resource id",
        "metadata = a list: use a JSON object",
        "start_task.command_line is missing",
        "start_task.command is not a key",
        "colour is not a key",
        "vm_size = 'D2 v3': use a VM size",
        "idle_minutes = True: use a whole number",
    }
    assert {line for line in wanted if line not in message} == set()
    assert "13 problems" in message


def test_a_number_with_a_fraction_is_not_a_count() -> None:
    assert "target_dedicated_nodes = 1.5: use a whole number" in error({"target_dedicated_nodes": 1.5})


def test_a_start_task_may_be_its_command_line_alone() -> None:
    assert PoolConfig.from_dict({"start_task": "pip3 install numpy"}).start_task == StartTaskConfig(
        command_line="pip3 install numpy"
    )


def test_application_packages_may_be_ids_alone() -> None:
    assert PoolConfig.from_dict({"application_packages": ["blender"]}).application_packages == {"blender": None}
    assert PoolConfig.from_dict({"application_packages": {"blender": "4.2"}}).application_packages == {"blender": "4.2"}


def test_times_are_read_with_their_units() -> None:
    config = PoolConfig.from_dict({"resize_timeout": "20 min", "pool_wait_timeout": "PT1H"})
    assert (config.resize_timeout, config.pool_wait_timeout) == (timedelta(minutes=20), timedelta(hours=1))


def test_a_subnet_is_named_whole() -> None:
    assert PoolConfig(subnet_id=SUBNET).subnet_id == SUBNET


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"http_url": "https://x/y"}, "needs file_path"),
        ({"file_path": "a"}, "exactly one of"),
        ({"http_url": "https://x/y", "storage_container_url": "https://x", "file_path": "a"}, "exactly one of"),
        ({"http_url": "https://x/y", "file_path": "../a"}, "outside"),
        ({"http_url": "https://x/y", "file_path": "/etc/a"}, "outside"),
        ({"http_url": "https://x/y", "file_path": "a", "blob_prefix": "p"}, "blob_prefix goes with a container"),
        ({"http_url": "https://x/y", "file_path": "a", "file_mode": "rwx"}, "octal"),
    ],
)
def test_a_resource_file_that_batch_would_refuse_is_refused(file: dict[str, Any], words: str) -> None:
    assert words in error({"start_task": {"command_line": "true", "resource_files": [file]}})


class TestSecrets:
    SAS = "https://a.blob.core.windows.net/c/b?sig=SECRETSAS"

    def config(self) -> PoolConfig:
        return PoolConfig.from_dict(
            {
                "start_task": {
                    "command_line": "true",
                    "environment": {"TOKEN": "SECRETVALUE"},
                    "resource_files": [{"http_url": self.SAS, "file_path": "b"}],
                }
            }
        )

    def test_they_are_kept(self) -> None:
        task = self.config().start_task
        assert task is not None
        assert task.environment == {"TOKEN": "SECRETVALUE"}
        assert task.resource_files[0].http_url == self.SAS

    def test_they_are_not_shown(self) -> None:
        config = self.config()
        assert "SECRET" not in f"{config!r} {config} {config.start_task!r} {config.start_task}"

    @pytest.mark.parametrize(
        "task",
        [
            {"command_line": "true", "environment": {"TOKEN": ["SECRETVALUE"]}},
            {"command_line": "true", "environment": {"BAD NAME": "SECRETVALUE"}},
            {"command_line": "true", "environment": "SECRETVALUE"},
            {"command_line": "true", "enviroment": {"TOKEN": "SECRETVALUE"}},
            {"environment": {"TOKEN": "SECRETVALUE"}},
            {"command_line": "true", "resource_files": [{"http_url": SAS}]},
            {"command_line": "true", "resource_files": [{"http_url": [SAS], "file_path": "b"}]},
            {"command_line": "true", "resource_files": {"http_url": SAS}},
        ],
    )
    def test_no_error_has_one(self, task: dict[str, Any]) -> None:
        message = error({"start_task": task})
        assert "start_task" in message
        assert "SECRET" not in message
