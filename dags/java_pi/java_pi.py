"""A step that runs a Java program: the jar is built here and travels to the node as an input."""

from pathlib import Path

from airflow.sdk import DAG, task

from airflow_batchwrap import BatchWorkflow, PoolConfig

SOURCE = Path(__file__).resolve().parent / "java" / "Pi.java"

with DAG("java_pi", schedule=None, catchup=False, tags=["batchwrap"], doc_md=__doc__, params={"points": 200_000}):

    @task
    def build_jar() -> str:
        """Compile the source on this machine and return the jar's path."""
        import shutil
        import subprocess
        import tempfile

        from airflow.sdk.exceptions import AirflowSkipException

        javac, jar = shutil.which("javac"), shutil.which("jar")
        if not javac or not jar:
            raise AirflowSkipException("There is no javac on this machine's PATH: the Java example is skipped.")
        folder = Path(tempfile.gettempdir()) / f"batchwrap-java-pi-{SOURCE.stat().st_mtime_ns}"
        target = folder / "pi.jar"
        if not target.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            subprocess.run([javac, "--release", "11", "-d", str(folder), str(SOURCE)], check=True)
            part = str(folder / "part.jar")
            subprocess.run([jar, "cfe", part, "Pi", "-C", str(folder), "Pi.class"], check=True)
            Path(part).replace(target)
        return str(target)

    BatchWorkflow(
        "pi",
        steps="steps",
        inputs=[build_jar()],
        args=["{{ params.points }}", "7"],
        pool_config=PoolConfig.from_json("batch.json", start_task="java -version"),
    )
