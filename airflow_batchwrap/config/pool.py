"""What a pool is to be: ``batch.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from airflow_batchwrap.config import legacy
from airflow_batchwrap.config.base import ConfigFile, ConfigModel
from airflow_batchwrap.config.durations import Duration
from airflow_batchwrap.config.values import MOST_SLOTS, SHORTEST_RESIZE, Count, Positive, matching

_Size = Annotated[
    str,
    matching(r"[A-Za-z0-9]+(_[A-Za-z0-9-]+)+", "use a VM size as Azure names it, such as Standard_D2s_v3"),
]
_ImageId = Annotated[
    str,
    matching(
        r"/subscriptions/[^/]+/.+/(images|galleries)/.+", "use the whole resource id: /subscriptions/.../images/..."
    ),
]
_SubnetId = Annotated[
    str,
    matching(
        r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/[^/]+/virtualNetworks/[^/]+/subnets/[^/]+",
        "use the whole resource id: /subscriptions/.../virtualNetworks/.../subnets/...",
    ),
]


class ResourceFileConfig(ConfigModel):
    """A file, or a container's files, that Batch puts on each node before the start task runs.

    :param http_url: of one file; a SAS in it is in no message; Azure shows it to whoever may read the pool.
    :param storage_container_url: of a Blob container, all of whose files (or those of ``blob_prefix``) are taken.
    :param auto_storage_container_name: such a container of the Batch account's own storage account.
    :param file_path: where the file goes, below the start task's working directory; with a container, the folder.
    :param file_mode: octal; Batch's own default is 0770.
    """

    http_url: str | None = Field(default=None, repr=False)
    storage_container_url: str | None = Field(default=None, repr=False)
    auto_storage_container_name: str | None = None
    blob_prefix: str | None = None
    file_path: str | None = None
    file_mode: (
        Annotated[str, matching(r"0?[0-7]{3,4}", 'use an octal mode in double quotes, such as "0755"')] | None
    ) = None

    @field_validator("file_path")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and (path.startswith("/") or ".." in path.split("/")):
            raise ValueError("is outside the start task's working directory: use a relative path without ..")
        return path

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = (self.http_url, self.storage_container_url, self.auto_storage_container_name)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("give exactly one of http_url, storage_container_url and auto_storage_container_name")
        if self.http_url is not None and not self.file_path:
            raise ValueError("http_url needs file_path, the name of the file on the node")
        if self.http_url is not None and self.blob_prefix is not None:
            raise ValueError("blob_prefix goes with a container, not with http_url")
        return self


class StartTaskConfig(ConfigModel):
    """What each node runs when it joins the pool, before it takes Batch tasks.

    :param command_line: run by ``/bin/sh -c``, so that variables and ``&&`` work.
    :param resource_files: what Batch puts in its working directory first.
    :param environment: names and values; the values are in no message; Azure shows them to whoever may read the pool.
    :param max_task_retry_count: how often a non-zero exit is tried again.
    :param wait_for_success: whether a node takes Batch tasks only once it has succeeded.
    :param elevated: whether it runs as an administrator, as ``apt-get install`` needs.
    """

    command_line: Annotated[str, Field(min_length=1)]
    resource_files: tuple[ResourceFileConfig, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict, repr=False)
    max_task_retry_count: Count = 0
    wait_for_success: bool = True
    elevated: bool = False

    @field_validator("environment", mode="before")
    @classmethod
    def _text(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError("use a JSON object of names and values")
        bad = [name for name in values if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name))]
        if bad:
            raise ValueError(f"{bad[0]!r} is not the name of an environment variable")
        if any(isinstance(value, (Mapping, list, bool, type(None))) for value in values.values()):
            raise ValueError("each value is text: put it in double quotes")
        return {str(name): str(value) for name, value in values.items()}


class PoolConfig(ConfigFile):
    """A pool of nodes; every key has a default that works on a new account. docs/configuration.md lists them.

    Keys have Azure's names in snake case. The upper-case keys of older ``batch.json`` files are read too.
    """

    noun: ClassVar[str] = "pool configuration"
    aliases: ClassVar[Mapping[str, str]] = legacy.POOL_ALIASES
    elsewhere: ClassVar[Mapping[str, str]] = legacy.POOL_ELSEWHERE
    ignored: ClassVar[frozenset[str]] = legacy.POOL_IGNORED

    if TYPE_CHECKING:  # not one typed keyword for each field: values may be templates, and keys have other names

        def __init__(self, /, **data: Any) -> None: ...

    # Nodes.
    vm_size: _Size = "Standard_D2s_v3"
    target_low_priority_nodes: Count = 0
    target_dedicated_nodes: Count = Field(
        # A pool of spot nodes alone is asked for by naming them alone.
        default_factory=lambda given: 0 if given.get("target_low_priority_nodes") else 1
    )
    min_nodes: Positive | None = None
    max_start_task_failures: Count | None = None
    task_slots_per_node: Annotated[Positive, Field(le=MOST_SLOTS)] = 1
    node_fill_type: Literal["pack", "spread"] = "spread"
    inter_node_communication: bool = False

    # Image.
    image_publisher: Annotated[str, Field(min_length=1)] = "canonical"
    image_offer: Annotated[str, Field(min_length=1)] = "ubuntu-24_04-lts"
    image_sku: Annotated[str, Field(min_length=1)] = "server"
    image_version: Annotated[str, Field(min_length=1)] = "latest"
    image_id: _ImageId | None = None
    node_agent_sku_id: Annotated[str, Field(min_length=1)] = "auto"
    os_disk_size_gb: Positive | None = None

    # What nodes do first, and where they are.
    start_task: StartTaskConfig | None = None
    subnet_id: _SubnetId | None = None
    application_packages: dict[str, str | None] = Field(default_factory=dict)

    # Life of the pool.
    resize_timeout: Duration = timedelta(minutes=15)
    pool_wait_timeout: Duration = timedelta(minutes=30)
    idle_minutes: Count = 15
    display_name: Annotated[str, Field(max_length=1024)] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)

    @field_validator("start_task", mode="before")
    @classmethod
    def _command_alone(cls, value: Any) -> Any:
        return {"command_line": value} if isinstance(value, str) else value

    @field_validator("node_fill_type", mode="before")
    @classmethod
    def _azure_words(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("application_packages", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return dict.fromkeys(value) if isinstance(value, (list, tuple)) else value

    @field_validator("resize_timeout")
    @classmethod
    def _long_enough(cls, value: timedelta) -> timedelta:
        if value < SHORTEST_RESIZE:
            raise ValueError("Batch takes no less than 5 minutes")
        return value

    @field_validator("pool_wait_timeout")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if not value:
            raise ValueError("a pool is never ready at once: give it some minutes")
        return value

    @property
    def total_nodes(self) -> int:
        """How many nodes the pool asks for, dedicated and spot."""
        return self.target_dedicated_nodes + self.target_low_priority_nodes

    @property
    def nodes_needed(self) -> int:
        """How many usable nodes are enough to start work."""
        return self.total_nodes if self.min_nodes is None else self.min_nodes

    @property
    def node_agent(self) -> str | None:
        """The node agent: the one given, or the one of a known image; None where only Batch's own list has it."""
        if self.node_agent_sku_id != "auto":
            return self.node_agent_sku_id
        return None if self.image_id else legacy.node_agent(self.image_publisher, self.image_offer, self.image_sku)

    @classmethod
    def _own_part(cls, data: dict[str, Any], source: str) -> dict[str, Any]:
        return {key: value for key, value in data.items() if key != "workflow"}

    def _merged(self, before: dict[str, Any]) -> dict[str, Any]:
        return {**self.to_dict(), **({"workflow": before["workflow"]} if "workflow" in before else {})}

    @classmethod
    def _old_value(cls, key: str, value: Any) -> Any:
        # Older files have the image's version as a number: 16.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return str(value) if key in ("image_sku", "image_version") and number else value

    def _holds_secrets(self) -> bool:
        task = self.start_task
        return "start_task" in self._late or (
            task is not None
            and (bool(task.environment) or any(f.http_url or f.storage_container_url for f in task.resource_files))
        )

    def _problems(self) -> list[str]:
        return [*self._node_problems(), *self._image_problems()]

    def _node_problems(self) -> list[str]:
        found = []
        if "vm_size" not in self._late and (remedy := legacy.retired_size(self.vm_size)):
            found.append(f"vm_size = {self.vm_size!r}: {remedy}")
        if not {"target_dedicated_nodes", "target_low_priority_nodes"} & set(self._late):
            if self.total_nodes == 0:
                found.append(
                    "target_dedicated_nodes and target_low_priority_nodes are both 0: nothing would ever run. "
                    "Ask for at least one node; idle_minutes empties the pool when there is no work."
                )
            elif self.min_nodes is not None and "min_nodes" not in self._late and self.min_nodes > self.total_nodes:
                found.append(
                    f"min_nodes = {self.min_nodes} is more than the {self.total_nodes} nodes that the pool asks for: "
                    "lower it, or raise target_dedicated_nodes or target_low_priority_nodes."
                )
        return found

    def _image_problems(self) -> list[str]:
        marketplace = ("image_publisher", "image_offer", "image_sku", "image_version")
        given = [key for key in marketplace if key in self.model_fields_set or key in self._late]
        if self.image_id is not None or "image_id" in self._late:
            if given:
                return [f"image_id and {given[0]} are two images: keep image_id for your own, or the other keys."]
            if self.node_agent_sku_id == "auto" and not {"image_id", "node_agent_sku_id"} & set(self._late):
                return [
                    "node_agent_sku_id is missing: it does not follow from image_id. Give the one of the image's "
                    'system, such as "batch.node.ubuntu 24.04".'
                ]
            return []
        if set(given) & set(self._late):
            return []
        if remedy := legacy.unusable_image(self.image_publisher, self.image_offer, self.image_sku):
            image = f"{self.image_publisher} {self.image_offer} {self.image_sku}"
            return [f"image_publisher, image_offer, image_sku = {image!r}: {remedy}"]
        # The default offer's other SKUs may be named alone; another offer's SKU is never the default one's.
        if ("image_publisher" in given or "image_offer" in given) and "image_sku" not in given:
            return ["image_sku is missing: image_publisher, image_offer and image_sku name one image together."]
        if "image_publisher" in given and self.image_publisher.lower() != "canonical" and "image_offer" not in given:
            return ["image_offer is missing: image_publisher, image_offer and image_sku name one image together."]
        return []
