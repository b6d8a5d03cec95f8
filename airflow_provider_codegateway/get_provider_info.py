"""What Airflow reads of this provider, without importing the rest of it."""

from __future__ import annotations

from typing import Any

CONNECTION_TYPE = "codegateway"
DEFAULT_CONNECTION_ID = "codegateway_default"

CONNECTION_FIELDS: dict[str, dict[str, Any]] = {
    "deadline": {
        "label": "Deadline (seconds)",
        "description": "For one whole call, retries included. A render takes about 120 s; 300 by default.",
        "schema": {"type": ["number", "null"], "minimum": 1},
    },
    "read_timeout": {
        "label": "Read timeout (seconds)",
        "description": "Silence while the gateway renders. 300 by default; at least 180.",
        "schema": {"type": ["number", "null"], "minimum": 1},
    },
    "connect_timeout": {
        "label": "Connect timeout (seconds)",
        "description": "To establish the connection. 10 by default.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
    "retries": {
        "label": "Retries",
        "description": "How often a call that bought nothing is repeated (429, 503, no connection). 3 by default.",
        "schema": {"type": ["integer", "null"], "minimum": 0},
    },
    "http_links": {
        "label": "Plain http links",
        "description": "'allow' downloads a clip over http, where an https gateway links to it so.",
        "schema": {"type": ["string", "null"]},
    },
    "spend": {
        "label": "Prices, budgets and journal",
        "description": "The s3:// URI of a JSON file of spend settings, or the JSON itself.",
        "schema": {"type": ["string", "null"]},
    },
    "spend_conn_id": {
        "label": "AWS connection of that file",
        "description": "aws_default by default.",
        "schema": {"type": ["string", "null"]},
    },
}
"""The fields in the connection's extra. The hook derives the form of older Airflow versions from them."""

CONNECTION_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "port", "schema", "extra"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {"password": "sk-cg-…", "host": "https://api.codegateway.dev"},
}

_INTEGRATION = "CodeGateway"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's manifest, as Airflow's entry point ``apache_airflow_provider`` wants it."""
    return {
        "package-name": "airflow-provider-codegateway",
        "name": _INTEGRATION,
        "description": "AI video generation with CodeGateway: a clip in S3, its key in XCom.",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://www.codegateway.dev",
                "tags": ["service"],
            }
        ],
        "operators": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_provider_codegateway.operators.video",
                    "airflow_provider_codegateway.operators.videos",
                ],
            }
        ],
        "hooks": [
            {"integration-name": _INTEGRATION, "python-modules": ["airflow_provider_codegateway.hooks.video"]}
        ],
        "triggers": [
            {
                "integration-name": _INTEGRATION,
                "python-modules": [
                    "airflow_provider_codegateway.triggers.video",
                    "airflow_provider_codegateway.triggers.videos",
                ],
            }
        ],
        "task-decorators": [
            {
                "class-name": "airflow_provider_codegateway.decorators.video.generate_video_task",
                "name": "generate_video",
            },
            {
                "class-name": "airflow_provider_codegateway.decorators.videos.generate_videos_task",
                "name": "generate_videos",
            },
        ],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": "airflow_provider_codegateway.hooks.video.CodeGatewayVideoHook",
                "hook-name": "CodeGateway",
                "conn-fields": CONNECTION_FIELDS,
                "ui-field-behaviour": CONNECTION_BEHAVIOUR,
            }
        ],
        "cli": ["airflow_provider_codegateway.cli.get_commands"],
        "extra-links": [
            "airflow_provider_codegateway.links.ClipLink",
            "airflow_provider_codegateway.links.BatchLink",
        ],
        "config": {
            "codegateway": {
                "description": "Pages of the CodeGateway provider in Airflow's UI.",
                "options": {
                    "clip_pages": {
                        "description": (
                            "Whether the API server serves the clip page and the gallery (Airflow 3.1 and later). "
                            "Without them, the link of a task leads to the S3 console."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    }
                },
            }
        },
    }
