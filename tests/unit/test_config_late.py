"""Values that are known only when a task runs: Jinja templates and Airflow's references."""

from __future__ import annotations

import pickle
from typing import Any

import jinja2
import pytest

from airflow_batchwrap.config import PoolConfig, StartTaskConfig, WorkflowConfig
from airflow_batchwrap.exceptions import ConfigError


def jinja(**params: Any) -> Any:
    return lambda value: jinja2.Environment(autoescape=False).from_string(value).render(params=params)  # noqa: S701


@pytest.mark.parametrize("key", [key for key in PoolConfig.model_fields if key != "start_task"])
def test_any_key_may_be_a_template(key: str) -> None:
    config = PoolConfig.from_dict({key: "{{ params.value }}"})
    assert config.is_templated
    assert config.late_keys == (key,)
    assert config.to_dict() == {key: "{{ params.value }}"}


def test_it_is_validated_once_it_is_rendered() -> None:
    config = PoolConfig(target_dedicated_nodes="{{ params.nodes }}", vm_size="{% if 1 %}{{ params.size }}{% endif %}")
    done = config.rendered(jinja(nodes=3, size="Standard_D4s_v3"))
    assert (done.total_nodes, done.vm_size, done.is_templated) == (3, "Standard_D4s_v3", False)
    with pytest.raises(ConfigError) as caught:
        config.rendered(jinja(nodes="three", size="BASIC_A1"))
    assert str(caught.value) == (
        "pool configuration, with target_dedicated_nodes, vm_size rendered: "
        "target_dedicated_nodes = 'three': use a whole number."
    )


def test_an_old_name_and_a_keyword_may_be_templates() -> None:
    config = PoolConfig.from_dict({"BATCH_NODE_COUNT": "{{ params.n }}"}).override(idle_minutes="{{ params.n }}")
    done = config.rendered(jinja(n=2))
    assert (done.total_nodes, done.idle_minutes) == (2, 2)


def test_templates_are_found_within_a_start_task() -> None:
    task = {"command_line": "echo {{ params.a }}", "environment": {"TOKEN": "{{ params.b }}"}}
    for given in (task, StartTaskConfig.model_validate(task)):
        config = PoolConfig(start_task=given)
        assert config.late_keys == ("start_task",)
        start_task = config.rendered(jinja(a="x", b="y")).start_task
        assert start_task is not None
        assert (start_task.command_line, start_task.environment) == ("echo x", {"TOKEN": "y"})


def test_what_is_not_known_yet_is_not_judged() -> None:
    PoolConfig(target_dedicated_nodes="{{ params.n }}", min_nodes=9)
    PoolConfig(image_sku="{{ params.sku }}", image_publisher="Canonical", image_offer="UbuntuServer")
    PoolConfig(image_id="{{ params.image }}", node_agent_sku_id="batch.node.el 9")
    WorkflowConfig(step_timeout="{{ params.hours }} h", job_wall_clock="1 h")


def test_what_is_known_is_judged_at_once() -> None:
    with pytest.raises(ConfigError, match="task_slots_per_node = 0"):
        PoolConfig(target_dedicated_nodes="{{ params.n }}", task_slots_per_node=0)


def test_a_wrong_key_with_a_template_is_still_a_wrong_key() -> None:
    with pytest.raises(ConfigError, match="did you mean vm_size"):
        PoolConfig.from_dict({"vmsize": "{{ params.size }}"})


def test_a_template_that_renders_to_a_template_is_told() -> None:
    with pytest.raises(ConfigError, match="vm_size of the pool configuration is still a template"):
        PoolConfig(vm_size="{{ params.size }}").rendered(jinja(size="{{ more }}"))


def test_it_shows_neither_the_template_nor_the_default_in_its_place() -> None:
    assert repr(PoolConfig(vm_size="{{ params.size }}", idle_minutes=3)) == "PoolConfig(idle_minutes=3, vm_size=<late>)"


def test_it_survives_a_copy_and_a_pickle() -> None:
    config = PoolConfig(vm_size="{{ params.size }}", target_spot_nodes=2)
    for copy in (pickle.loads(pickle.dumps(config)), PoolConfig.from_dict(config.to_dict())):  # noqa: S301
        assert copy == config
        assert copy.late_keys == ("vm_size",)
    assert PoolConfig(vm_size="{{ a }}") != PoolConfig(vm_size="{{ b }}")


def test_airflow_renders_it_where_it_is_a_template_field(tmp_path_factory: pytest.TempPathFactory) -> None:
    from airflow.sdk import DAG, BaseOperator

    class Taker(BaseOperator):
        template_fields = ("pool_config",)

        def __init__(self, *, pool_config: PoolConfig, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.pool_config = pool_config

    with DAG("late", params={"nodes": 2, "size": "Standard_D4s_v3"}) as dag:
        task = Taker(
            task_id="taker",
            pool_config=PoolConfig(target_dedicated_nodes=dag.param("nodes"), vm_size="{{ params.size }}"),
        )
    assert task.pool_config.late_keys == ("target_dedicated_nodes", "vm_size")
    context: Any = {"params": {"nodes": 4, "size": "Standard_D8s_v3"}, "task": task, "dag": dag, "ti": None}
    task.render_template_fields(context)
    assert task.pool_config.to_dict() == {"target_dedicated_nodes": 4, "vm_size": "Standard_D8s_v3"}


def test_a_reference_cannot_be_written_to_a_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    from airflow.sdk import DAG

    dag = DAG("late_file", params={"nodes": 2})
    file = tmp_path_factory.mktemp("late") / "batch.json"
    with pytest.raises(ConfigError, match="target_dedicated_nodes: an Airflow reference cannot be written"):
        PoolConfig(target_dedicated_nodes=dag.param("nodes")).to_json(file)
    assert not file.exists()
