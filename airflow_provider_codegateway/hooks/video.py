"""The hook: the only way from an Airflow connection to the gateway."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, mask_secret

from airflow_provider_codegateway.batch import Means
from airflow_provider_codegateway.exceptions import InvalidConnection
from airflow_provider_codegateway.foreign import read_json, safe_text
from airflow_provider_codegateway.gateway import (
    BlockingCall,
    Gateway,
    GatewaySettings,
    Receipt,
    checked_settings,
    read_receipt,
)
from airflow_provider_codegateway.get_provider_info import (
    CONNECTION_BEHAVIOUR,
    CONNECTION_FIELDS,
    CONNECTION_TYPE,
    DEFAULT_CONNECTION_ID,
)
from airflow_provider_codegateway.hooks.storage import s3_client
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.metrics import MeteredBuyer, clip_delivered_aside
from airflow_provider_codegateway.purchase import Purchase
from airflow_provider_codegateway.spend import Account, SpendSettings, parse_spend, read_spend
from airflow_provider_codegateway.threads import to_the_end

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.clip import ClipSpec
    from airflow_provider_codegateway.models import VideoRequest


class CodeGatewayVideoHook(BaseHook):
    """Buys renders of CodeGateway with the key of an Airflow connection.

    The connection (type ``codegateway``): password = API key, host = base URL (by default
    ``https://api.codegateway.dev``); the extra may hold ``deadline``, ``read_timeout``, ``connect_timeout``
    (seconds), ``retries``, and ``spend``: prices, budgets and journal, or the ``s3://`` URI of a file of them.

    ``purchase`` never buys a clip twice; ``generate`` and ``agenerate`` buy a render at every call.

    :param codegateway_conn_id: id of the connection.
    """

    conn_name_attr = "codegateway_conn_id"
    default_conn_name = DEFAULT_CONNECTION_ID
    conn_type = CONNECTION_TYPE
    hook_name = "CodeGateway"
    limits: Limits = LIMITS

    def __init__(self, codegateway_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codegateway_conn_id = codegateway_conn_id

    def get_settings(self) -> GatewaySettings:
        """The connection, checked.

        :raises InvalidConnection: no or malformed API key, base URL or extra, named.
        """
        return settings_of(self._connection(), self._where)

    @property
    def _where(self) -> str:
        return f"connection {self.codegateway_conn_id!r}"

    def _connection(self) -> Connection:
        try:
            return self.get_connection(self.codegateway_conn_id)
        except AirflowNotFoundException:
            raise self._missing() from None

    async def _aconnection(self) -> Connection:
        """The connection, whose ``extra_dejson`` a thread must read.

        It masks secrets with a call to the supervisor, which must not be made from the event loop.
        """
        try:
            return await get_async_connection(self.codegateway_conn_id)
        except AirflowNotFoundException:
            raise self._missing() from None

    def _missing(self) -> InvalidConnection:
        return InvalidConnection(
            f"The connection {self.codegateway_conn_id!r} does not exist. Create it with type {CONNECTION_TYPE!r} and "
            "the API key as its password."
        )

    def get_conn(self) -> Gateway:
        """The gateway of the connection; nothing is open yet, so nothing needs to be closed."""
        return Gateway(self.get_settings(), limits=self.limits)

    async def aget_conn(self) -> Gateway:
        """As ``get_conn``, without holding up the event loop."""
        settings = await to_the_end("ledger", settings_of, await self._aconnection(), self._where)
        return Gateway(settings, limits=self.limits)

    def purchase(self, spec: ClipSpec, *, s3: S3Client) -> Purchase:
        """The purchase of one clip: bought at most once, however often it is repeated.

        :param s3: a boto3 client for the clip, and for its ledger if that has no connection of its own.
        :raises InvalidConnection: see ``get_settings``.
        :raises InvalidTarget: no S3 client can be made of ``spec.ledger_conn_id``.
        """
        return self._purchase(spec, s3, self._connection())

    async def apurchase(self, spec: ClipSpec, *, s3: S3Client) -> Purchase:
        """As ``purchase``, without holding up the event loop."""
        return await to_the_end("ledger", self._purchase, spec, s3, await self._aconnection())

    def _purchase(self, spec: ClipSpec, s3: S3Client, connection: Connection) -> Purchase:
        gateway = Gateway(settings_of(connection, self._where), limits=self.limits)
        return _purchase(
            spec, s3, gateway, self._account(connection), _allows_http_links(connection), self.limits
        )

    def means(self, *, s3: S3Client, max_active: int) -> Means:
        """What all purchases of a batch share: one gateway, one account.

        :param s3: a boto3 client for the clips and their ledgers.
        :param max_active: how many of them may be under way at a time.
        :raises InvalidConnection: see ``get_settings``.
        """
        return self._means(s3, max_active, self._connection())

    async def ameans(self, *, s3: S3Client, max_active: int) -> Means:
        """As ``means``, without holding up the event loop."""
        return await to_the_end("ledger", self._means, s3, max_active, await self._aconnection())

    def _means(self, s3: S3Client, max_active: int, connection: Connection) -> Means:
        settings = settings_of(connection, self._where)
        limits = replace(
            self.limits,
            progress_interval=math.inf,  # of one render: the batch reports for all of them
            # Rows that wait for a run that died look at their ledgers less often, the more they are.
            poll_interval=max(self.limits.poll_interval, max_active / 50),
        )
        # The batch repeats what was refused for now: its rows meet one rate limit. Fallbacks come after retries.
        gateway = Gateway(replace(settings, retries=0), limits=limits)
        account = self._account(connection)
        allows_http_links = _allows_http_links(connection)
        patient = Gateway(settings, limits=limits)

        def purchase(spec: ClipSpec) -> Purchase:
            buys = patient if spec.fallbacks else gateway
            return _purchase(spec, s3, buys, account, allows_http_links, limits)

        return Means(
            s3=s3,
            purchase=purchase,
            account=account,
            retries=settings.retries,
            deadline=settings.deadline,
            on_clip=clip_delivered_aside,
            max_active=max_active,
            limits=self.limits,
        )

    def _account(self, connection: Connection) -> Account:
        settings = spend_of(connection, self._where)
        if settings is None:
            return Account()
        s3 = s3_client(settings.journal_conn_id) if settings.journal else None
        return Account.open(settings, s3, self.limits)

    def get_spend(self) -> tuple[SpendSettings, S3Client]:
        """The connection's spend settings, and a client for their journal.

        :raises InvalidConnection: it has none, or they are wrong.
        """
        settings = spend_of(self._connection(), self._where)
        if settings is None:
            raise InvalidConnection(
                f"The extra of {self._where} has no 'spend'. Add one with currency, prices, budgets and journal."
            )
        return settings, s3_client(settings.journal_conn_id)

    async def agenerate(self, request: VideoRequest) -> Receipt:
        """Buy one render.

        :param request: see ``models.build_request``; its media as the model takes them.
        :raises RequestRejected, GatewayUnavailable, RenderOutcomeUnknown: see ``Gateway.generate``.
        """
        return read_receipt(await (await self.aget_conn()).generate(request.content))

    def generate(self, request: VideoRequest) -> Receipt:
        """Buy one render, and block for the two minutes that it takes. Otherwise as ``agenerate``."""
        return read_receipt(BlockingCall().run(self.get_conn().generate(request.content)))

    def test_connection(self) -> tuple[bool, str]:
        """Prove key and reachability without spending; see ``probe``.

        :return: whether both are proven, and in words what was seen; never the key.
        """
        from airflow_provider_codegateway.gateway.probe import probe

        try:
            # Airflow's UI tests what is in the form, under an id that it makes up.
            settings = settings_of(self._connection(), "this connection")
            return BlockingCall().run(probe(settings))
        except InvalidConnection as error:
            words = error.args[0]
            return False, f"{words[:1].upper()}{words[1:]}"

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


def _purchase(
    spec: ClipSpec,
    s3: S3Client,
    gateway: Gateway,
    account: Account,
    allows_http_links: bool,
    limits: Limits,
) -> Purchase:
    buyer, *fallback_buyers = (
        MeteredBuyer(
            gateway,
            each.model,
            None if each.priced_by is None else account.cost({"model": each.model, **each.priced_by}),
        )
        for each in spec.members
    )
    return Purchase(
        spec,
        s3=s3,
        ledger_s3=None if spec.ledger_conn_id is None else s3_client(spec.ledger_conn_id),
        buyer=buyer,
        fallback_buyers=fallback_buyers,
        claim_seconds=gateway.settings.deadline,
        account=account,
        allows_http_links=allows_http_links,
        limits=limits,
    )


_ALLOW = "allow"


def _allows_http_links(connection: Connection) -> bool:
    return bool(connection.extra_dejson.get("http_links") == _ALLOW)


_NO_EXTRA = frozenset({"", "{}", "null"})
"""What Airflow takes for no extra. Of what is not JSON it logs a traceback, and goes on without."""


def settings_of(connection: Connection, where: str) -> GatewaySettings:
    """The settings in a connection.

    :param where: how to name the connection in an error.
    :raises InvalidConnection: naming what is wrong; the key is never shown.
    """
    if connection.conn_type not in {CONNECTION_TYPE, "", None}:
        raise InvalidConnection(
            f"{where} has type {connection.conn_type!r}. Create one with type {CONNECTION_TYPE!r}."
        )
    parsed = connection.extra_dejson
    if not isinstance(parsed, dict) or (not parsed and (connection.extra or "").strip() not in _NO_EXTRA):
        raise InvalidConnection(
            f'The extra of {where} is not a JSON object. Use one such as {{"deadline": 300}}.'
        )
    extra = {name: value for name, value in parsed.items() if value is not None and value != ""}
    if unknown := sorted(extra.keys() - CONNECTION_FIELDS.keys()):
        raise InvalidConnection(
            f"{where} has an unknown extra {unknown[0]!r}. Use {', '.join(CONNECTION_FIELDS)}."
        )
    if (http_links := extra.get("http_links", _ALLOW)) != _ALLOW:
        raise InvalidConnection(
            f"The extra 'http_links' of {where} is {http_links!r:.80}. Use {_ALLOW!r}, or leave it out."
        )
    conn_id = extra.get("spend_conn_id", "")
    if not isinstance(conn_id, str):
        raise InvalidConnection(
            f"The extra 'spend_conn_id' of {where} is {conn_id!r:.80}. Use the name of an AWS connection."
        )
    numbers = {name: _number(name, value, where) for name, value in extra.items() if not _is_text(name)}
    settings = checked_settings(
        api_key=connection.password, base_url=_base_url(connection, where), where=where, **numbers
    )
    # Airflow masks the password as it was typed; what is sent has been stripped.
    mask_secret(settings.api_key)
    return settings


def spend_of(connection: Connection, where: str) -> SpendSettings | None:
    """The spend settings in a connection, or in the file that it names; None if it has none.

    :raises InvalidConnection: naming what is wrong.
    """
    extra = connection.extra_dejson
    value = extra.get("spend") if isinstance(extra, dict) else None
    if value is None or value == "":
        return None
    where = f"The extra 'spend' of {where}"
    if not isinstance(value, str):
        return parse_spend(value, where)
    if not value.lstrip().startswith("{"):
        conn_id = extra.get("spend_conn_id") or "aws_default"
        return _read_spend(value, conn_id, where, int(time.monotonic() / _SPEND_FILE_SECONDS))
    try:
        return parse_spend(read_json(value), where)
    except ValueError as error:
        raise InvalidConnection(f"{where} is not JSON ({error}). Correct it.") from None


_SPEND_FILE_SECONDS = 60.0
"""For how long a file of spend settings is not read again: a triggerer asks for each of its renders."""


@functools.lru_cache(maxsize=16)
def _read_spend(uri: str, conn_id: str, where: str, minute: int) -> SpendSettings:
    return read_spend(uri, s3_client(conn_id), where)


def _is_text(name: str) -> bool:
    return "string" in CONNECTION_FIELDS[name]["schema"]["type"]


def _base_url(connection: Connection, where: str) -> str | None:
    """The host field; a connection written as a URI has scheme and port in fields of their own."""
    schema = connection.schema
    if schema and schema not in {"http", "https"}:
        raise InvalidConnection(
            f"The schema of {where} is {schema!r}. Use http, https or none. A path belongs to the base URL, in "
            "the host field."
        )
    if not connection.host:
        return None
    scheme, separator, rest = connection.host.rpartition("://")
    authority, slash, path = rest.partition("/")
    port = f":{connection.port}" if connection.port else ""
    return f"{scheme if separator else schema or 'https'}://{authority}{port}{slash}{path}"


_MOST_SECONDS = 86_400
"""A day."""


def _number(name: str, value: object, where: str) -> float | int:
    schema = CONNECTION_FIELDS[name]["schema"]
    kind = int if "integer" in schema["type"] else float
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        number = kind(value)
        if not schema["minimum"] <= number <= _MOST_SECONDS or (kind is int and number != float(value)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = "an integer" if kind is int else "a number of seconds"
        raise InvalidConnection(
            f"The extra {name!r} of {where} must be {what} from {schema['minimum']} to {_MOST_SECONDS:,}, not "
            f"{safe_text(value, 80)!r}."
        ) from None
    return number
