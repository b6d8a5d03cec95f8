"""The hook: from an Airflow connection to the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, mask_secret

from airflow_provider_codegateway.exceptions import CodeGatewayError, InvalidConnection, RequestRejected
from airflow_provider_codegateway.gateway import (
    BlockingCall,
    Gateway,
    GatewaySettings,
    Receipt,
    checked_settings,
)
from airflow_provider_codegateway.get_provider_info import (
    CONNECTION_BEHAVIOUR,
    CONNECTION_FIELDS,
    CONNECTION_TYPE,
    DEFAULT_CONNECTION_ID,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

    from airflow_provider_codegateway.models import VideoRequest


class CodeGatewayVideoHook(BaseHook):
    """Buys renders of CodeGateway with the key of an Airflow connection.

    The connection (type ``codegateway``): password = API key, host = base URL (by default
    ``https://api.codegateway.dev``); the extra may hold ``deadline``, ``read_timeout``, ``connect_timeout``
    (seconds) and ``retries``.

    The hook buys whenever it is asked to: it is the operator that never buys twice.

    :param codegateway_conn_id: id of the connection.
    """

    conn_name_attr = "codegateway_conn_id"
    default_conn_name = DEFAULT_CONNECTION_ID
    conn_type = CONNECTION_TYPE
    hook_name = "CodeGateway"

    def __init__(self, codegateway_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codegateway_conn_id = codegateway_conn_id

    def get_settings(self) -> GatewaySettings:
        """The connection, checked.

        :raises InvalidConnection: no or malformed API key, base URL or extra, named.
        """
        try:
            connection = self.get_connection(self.codegateway_conn_id)
        except AirflowNotFoundException:
            raise InvalidConnection(
                f"There is no connection {self.codegateway_conn_id!r}: make one of type {CONNECTION_TYPE!r} with "
                "the API key as its password."
            ) from None
        return settings_of(connection, self.codegateway_conn_id)

    def get_conn(self) -> Gateway:
        """The gateway of the connection; nothing is open yet, so nothing need be closed."""
        return Gateway(self.get_settings())

    async def agenerate(self, request: VideoRequest) -> Receipt:
        """Buy one render.

        :param request: see ``models.build_request``; its media as the model takes them.
        :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see ``Gateway.generate``.
        """
        from airflow.providers.common.compat.connection import get_async_connection

        connection = await get_async_connection(self.codegateway_conn_id)
        return await Gateway(settings_of(connection, self.codegateway_conn_id)).generate(request.body())

    def generate(self, request: VideoRequest) -> Receipt:
        """Buy one render, and block for the two minutes that it takes. Otherwise as ``agenerate``."""
        return BlockingCall().run(self.get_conn().generate(request.body()))

    def test_connection(self) -> tuple[bool, str]:
        """Prove key and reachability without spending: ask for what the gateway must refuse.

        Veo requires a prompt; without one the gateway answers 400, and only after it knows the key.
        """
        try:
            settings = self.get_settings()
            BlockingCall().run(Gateway(settings).generate({"model": "google/veo-3.1-fast"}))
        except RequestRejected as error:
            if error.status == 400:
                return True, f"{settings.base_url} accepts the API key."
            return False, str(error)
        except CodeGatewayError as error:
            return False, str(error)
        return False, (
            f"{settings.base_url} rendered a request without a prompt, which it should have refused: "
            "this is no CodeGateway, or no longer the one of the guide. A render was bought."
        )

    # The form of Airflow before 3.2, from the same definition as that of the later ones.

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's fields for the extra."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import IntegerField, StringField
        from wtforms.validators import Optional

        return {
            name: (IntegerField if "integer" in field["schema"]["type"] else StringField)(
                field["label"],
                description=field["description"],
                widget=BS3TextFieldWidget(),
                validators=[Optional()],
            )
            for name, field in CONNECTION_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Which standard fields the form shows, and under which names."""
        return {name.replace("-", "_"): value for name, value in CONNECTION_BEHAVIOUR.items()}


def settings_of(connection: Connection, conn_id: str) -> GatewaySettings:
    """The settings in a connection.

    :raises InvalidConnection: naming what is wrong; the key is never shown.
    """
    where = f"connection {conn_id!r}"
    if connection.conn_type not in {CONNECTION_TYPE, "", None}:
        raise InvalidConnection(
            f"{where} is of type {connection.conn_type!r}: make one of type {CONNECTION_TYPE!r}."
        )
    extra = {
        name: value for name, value in connection.extra_dejson.items() if value is not None and value != ""
    }
    if unknown := sorted(extra.keys() - CONNECTION_FIELDS.keys()):
        raise InvalidConnection(
            f"{where} has an extra {unknown[0]!r} that means nothing here: "
            f"use {', '.join(CONNECTION_FIELDS)}."
        )
    numbers = {name: _number(name, value, where) for name, value in extra.items()}
    settings = checked_settings(
        api_key=connection.password, base_url=_base_url(connection), where=where, **numbers
    )
    # Airflow masks the password as it was typed; what is sent has been stripped.
    mask_secret(settings.api_key)
    return settings


def _base_url(connection: Connection) -> str | None:
    """The host field; a connection written as a URI has scheme and port in fields of their own."""
    host = connection.host
    if not host or "://" in host:
        return host
    scheme = connection.schema if connection.schema in {"http", "https"} else "https"
    return f"{scheme}://{host}{f':{connection.port}' if connection.port else ''}"


def _number(name: str, value: object, where: str) -> float | int:
    schema = CONNECTION_FIELDS[name]["schema"]
    kind = int if "integer" in schema["type"] else float
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        number = kind(value)
        if not schema["minimum"] <= number < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        what = "a whole number" if kind is int else "a number of seconds"
        raise InvalidConnection(
            f"The extra {name!r} of {where} is {value!r}: use {what} from {schema['minimum']} up."
        ) from None
    return number
