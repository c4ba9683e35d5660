"""Our settings become the SDK's models. Nothing here sends anything.

A fact about Azure that decides a line stands beside it; more facts are in docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from azure.batch import models

from airflow_batchwrap.config import PoolConfig, ResourceFileConfig, StartTaskConfig
from airflow_batchwrap.engine import protocol
from airflow_batchwrap.hooks.autoscale import EVALUATION_INTERVAL, ScaleFormula

# Whether a Batch task's default user is its own or the pool's differs by what one reads, so it is always said.
# Rights on files that one Batch task leaves for another depend on it.
USER = models.UserIdentity(
    auto_user=models.AutoUserSpecification(
        scope=models.AutoUserScope.POOL, elevation_level=models.ElevationLevel.NON_ADMIN
    )
)
FILE_MODE = "0755"  # the service's default, 0770, shuts out other users of the node
# Given to Batch's agent, which owns the files: the job preparation task's user may not be allowed to change them.
INPUT_MODE = "0555"
# Batch's agent and the user of the Batch task, which has the group, may read it; nobody changes it.
SECRET_MODE = "0440"  # noqa: S105 - a file mode
INPUTS_DIR = "inputs"
FINGERPRINT_ENV = "BATCHWRAP_FINGERPRINT"
PREPARATION_ID = "jobpreparation"
RELEASE_ID = "jobrelease"


def engine_command(sha256: str) -> str:
    """Return the command line that starts the engine, if the archive that arrived is the one that was packed.

    Who may write to the container of archives could put another one in its place; the command line travels by Batch
    alone. ``sha256sum`` is part of every Linux image, ``shasum`` of macOS. An exec'ed shell child is the Batch task's
    own process: signals and the exit code pass through. Batch itself uses no shell, so variables would not expand
    without one.

    :param sha256: the archive's digest, in hexadecimal.
    """
    name = protocol.ARCHIVE_NAME
    wrong = f"batchwrap: the archive {name} that came has the sha256 ${{h%% *}} and not {sha256}: it was changed"
    remedy = "Delete that blob, and clear the set-up task, which uploads it again"
    return (
        f"/bin/sh -c 'h=$({{ sha256sum {name} || shasum -a 256 {name}; }} 2>/dev/null); "
        f'[ "${{h%% *}}" = {sha256} ] && exec python3 {name}; '
        f'echo "{wrong}. {remedy}." >&2; exit {protocol.EXIT_ENGINE_FAILED}\''
    )


def shell_command(command: str) -> str:
    """Return a command line that runs a user's command in a shell, as Batch itself does not."""
    quoted = command.replace("'", "'\"'\"'")
    return f"/bin/sh -c '{quoted}'"


def resource_file(url: str, path: str, mode: str = FILE_MODE) -> models.ResourceFile:
    """Return one blob that is put at ``path``, relative to the working directory."""
    return models.ResourceFile(http_url=url, file_path=path, file_mode=mode)


def resource_folder(container_url: str, prefix: str, path: str, mode: str = FILE_MODE) -> models.ResourceFile:
    """Return all blobs below a prefix, put below ``path`` with their whole names."""
    return models.ResourceFile(storage_container_url=container_url, blob_prefix=prefix, file_path=path, file_mode=mode)


def output_file(container_url: str, pattern: str, path: str) -> models.OutputFile:
    """Return what Batch uploads whatever the outcome, as long as the node lives."""
    return models.OutputFile(
        file_pattern=pattern,
        destination=models.OutputFileDestination(
            container=models.OutputFileBlobContainerDestination(container_url=container_url, path=path)
        ),
        upload_options=models.OutputFileUploadConfiguration(
            upload_condition=models.OutputFileUploadCondition.TASK_COMPLETION
        ),
    )


def step_outputs(container_url: str, prefix: str) -> list[models.OutputFile]:
    """Return the uploads of one attempt, below ``prefix``.

    Names without a wildcard are exact blob names. With one, ``path`` is a prefix, and it is not documented whether the
    literal part of the pattern is kept: the fetch finds those files by the result record.
    """
    out = protocol.OUT_DIR
    return [
        output_file(container_url, f"{out}/{protocol.RESULT_FILE}", f"{prefix}/{protocol.RESULT_FILE}"),
        output_file(container_url, f"{out}/{protocol.VALUE_FILE}", f"{prefix}/{protocol.VALUE_FILE}"),
        output_file(container_url, f"{out}/{protocol.FILES_DIR}/**/*", f"{prefix}/{protocol.FILES_DIR}"),
        output_file(container_url, "../stdout.txt", f"{prefix}/stdout.txt"),
        output_file(container_url, "../stderr.txt", f"{prefix}/stderr.txt"),
    ]


def task_options(
    batch_task_id: str,
    command_line: str,
    *,
    resource_files: Sequence[models.ResourceFile],
    output_files: Sequence[models.OutputFile],
    environment: Mapping[str, str],
    wall_clock: timedelta,
    batch_retries: int,
    required_slots: int,
) -> models.BatchTaskCreateOptions:
    """Return one Batch task."""
    return models.BatchTaskCreateOptions(
        id=batch_task_id,
        command_line=command_line,
        resource_files=list(resource_files),
        output_files=list(output_files),
        environment_settings=environment_settings(environment),
        constraints=models.BatchTaskConstraints(max_wall_clock_time=wall_clock, max_task_retry_count=batch_retries),
        required_slots=required_slots,
        user_identity=USER,
    )


def environment_settings(values: Mapping[str, str]) -> list[models.EnvironmentSetting]:
    """Return environment variables."""
    return [models.EnvironmentSetting(name=name, value=value) for name, value in values.items()]


def metadata_items(values: Mapping[str, str]) -> list[models.BatchMetadataItem]:
    """Return metadata."""
    return [models.BatchMetadataItem(name=name, value=value) for name, value in values.items()]


def job_options(
    job_id: str,
    pool_id: str,
    *,
    inputs: Sequence[models.ResourceFile],
    input_count: int,
    wall_clock: timedelta,
    batch_retries: int,
    metadata: Mapping[str, str],
) -> models.BatchJobCreateOptions:
    """Return a run's job.

    Where there are inputs its preparation task brings them to each node once, before the job's first Batch task
    there, and its release task removes them. They stay in the preparation task's own directory, which all Batch tasks
    of the job find in ``AZ_BATCH_JOB_PREP_WORKING_DIR`` and no other job shares.

    :param input_count: how many files must have arrived: a prefix that matches fewer blobs is no error to Batch.
    """
    preparation = release = None
    if inputs:
        check = (
            f'n=$(find {INPUTS_DIR} -type f | wc -l); if [ "$n" -ne {input_count} ]; then '
            f'echo "{input_count} input files were uploaded for this job, $n have arrived" >&2; exit 1; fi'
        )
        preparation = models.BatchJobPreparationTask(
            id=PREPARATION_ID,
            command_line=f"/bin/sh -c '{check}'",
            resource_files=list(inputs),
            user_identity=USER,
            wait_for_success=True,
            rerun_on_node_reboot_after_success=True,
            constraints=models.BatchTaskConstraints(max_task_retry_count=0),
        )
        # With :? the shell gives up where the variable is missing, rather than remove /inputs.
        inputs_path = f'"${{AZ_BATCH_JOB_PREP_WORKING_DIR:?}}/{INPUTS_DIR}"'
        release = models.BatchJobReleaseTask(
            id=RELEASE_ID,
            command_line=f"/bin/sh -c 'rm -rf {inputs_path}'",
            user_identity=USER,
        )
    return models.BatchJobCreateOptions(
        id=job_id,
        pool_info=models.BatchPoolInfo(pool_id=pool_id),
        job_preparation_task=preparation,
        job_release_task=release,
        constraints=models.BatchJobConstraints(max_wall_clock_time=wall_clock, max_task_retry_count=batch_retries),
        metadata=metadata_items(metadata),
    )


def pool_options(
    pool_id: str,
    config: PoolConfig,
    node_agent_sku_id: str,
    metadata: Mapping[str, str],
    nodes_within: timedelta = timedelta(minutes=30),
) -> models.BatchPoolCreateOptions:
    """Return a pool that has its nodes at once, and none after ``idle_minutes`` without work; 0 fixes its size.

    Nodes that the work that is left cannot use go before that, but not where Batch tasks may take several nodes
    (``inter_node_communication``).

    :param node_agent_sku_id: the node agent of the image.
    :param metadata: beside the configuration's own.
    :param nodes_within: how long its nodes may take to come; until then it needs no work to keep them.
    """
    dedicated, spot, idle = config.target_dedicated_nodes, config.target_low_priority_nodes, config.idle_minutes
    # Batch refuses targets beside a formula, and its resize timeout is for resizes by hand.
    scaling: dict[str, Any] = (
        {
            "enable_auto_scale": True,
            "auto_scale_formula": ScaleFormula.new(
                dedicated, spot, idle, nodes_within, shrinks=not config.inter_node_communication
            ).text,
            "auto_scale_evaluation_interval": EVALUATION_INTERVAL,
        }
        if idle
        else {
            "target_dedicated_nodes": dedicated,
            "target_low_priority_nodes": spot,
            "resize_timeout": config.resize_timeout,
        }
    )
    if config.image_id:
        image = models.BatchVmImageReference(virtual_machine_image_id=config.image_id)
    else:
        image = models.BatchVmImageReference(
            publisher=config.image_publisher,
            offer=config.image_offer,
            sku=config.image_sku,
            version=config.image_version,
        )
    disk = models.BatchOsDisk(disk_size_gb=config.os_disk_size_gb) if config.os_disk_size_gb else None
    network = models.NetworkConfiguration(subnet_id=config.subnet_id) if config.subnet_id else None
    return models.BatchPoolCreateOptions(
        id=pool_id,
        display_name=config.display_name,
        vm_size=config.vm_size,
        virtual_machine_configuration=models.VirtualMachineConfiguration(
            image_reference=image, node_agent_sku_id=node_agent_sku_id, os_disk=disk
        ),
        enable_inter_node_communication=config.inter_node_communication,
        network_configuration=network,
        start_task=_start_task(config.start_task) if config.start_task else None,
        application_package_references=[
            models.BatchApplicationPackageReference(application_id=name, version=version)
            for name, version in config.application_packages.items()
        ]
        or None,
        task_slots_per_node=config.task_slots_per_node,
        task_scheduling_policy=models.BatchTaskSchedulingPolicy(node_fill_type=config.node_fill_type),
        metadata=metadata_items({**config.metadata, **metadata}),
        **scaling,
    )


def _start_task(config: StartTaskConfig) -> models.BatchStartTask:
    level = models.ElevationLevel.ADMIN if config.elevated else models.ElevationLevel.NON_ADMIN
    return models.BatchStartTask(
        command_line=shell_command(config.command_line),
        resource_files=[_start_file(file) for file in config.resource_files],
        environment_settings=environment_settings(config.environment),
        user_identity=models.UserIdentity(
            auto_user=models.AutoUserSpecification(scope=models.AutoUserScope.POOL, elevation_level=level)
        ),
        max_task_retry_count=config.max_task_retry_count,
        wait_for_success=config.wait_for_success,
    )


def _start_file(config: ResourceFileConfig) -> models.ResourceFile:
    return models.ResourceFile(
        http_url=config.http_url,
        storage_container_url=config.storage_container_url,
        auto_storage_container_name=config.auto_storage_container_name,
        blob_prefix=config.blob_prefix,
        file_path=config.file_path,
        file_mode=config.file_mode or FILE_MODE,
    )
