"""Apache Airflow provider for CodeGateway: one operator in a DAG, a clip in S3, its key in XCom."""

__version__ = "0.1.0"
