"""Prices: what machines cost, by which this project's jobs and serving are reckoned."""

from typing import Any

import pandas
import streamlit as st
from pydantic import ValidationError

from paredown.contracts.access import Scope
from paredown.contracts.prices import InstanceType, PriceBook
from paredown.web import parts, session

_GB = 1e9
_COLUMNS = {
    "name": st.column_config.TextColumn("Instance type", required=True, help="Such as m7i.2xlarge."),
    "device": st.column_config.SelectboxColumn("Device", options=["cpu", "cuda"], required=True, default="cpu"),
    "memory_gb": st.column_config.NumberColumn(
        "Memory, GB", min_value=0.1, required=True, help="Of the device: a GPU's own memory for cuda."
    ),
    "price_per_hour": st.column_config.NumberColumn("Price an hour", min_value=0.0, required=True, format="%.4g"),
    "currency": st.column_config.TextColumn("Currency", required=True, default="USD", validate="^[A-Z]{3}$"),
    "as_of": st.column_config.DateColumn("As of", required=True, help="The day on which the price was looked up."),
}
# What an empty table's columns are to hold.
_KINDS = {
    "name": "string",
    "device": "string",
    "memory_gb": "float64",
    "price_per_hour": "float64",
    "currency": "string",
    "as_of": "datetime64[ns]",
}


def page() -> None:
    parts.heading(
        "Prices",
        "What machines cost by the hour. A pool of workers that names an instance type is reckoned by its price, and "
        "serving by the smallest type that holds the model.",
    )
    client = session.client()
    book = client.prices()
    _pools()
    st.subheader("Instance types", anchor=False)
    if Scope.KEYS_ADMIN not in session.me().scopes:
        st.caption("Only a key with the scope keys:admin can change them.")
        if book.items:
            st.dataframe(_lines(book), hide_index=True, column_config=_COLUMNS)
        else:
            st.caption("None yet.")
        return
    with st.form("prices", border=False):
        edited = st.data_editor(
            pandas.DataFrame(_lines(book), columns=list(_COLUMNS)).astype(_KINDS),
            num_rows="dynamic",
            hide_index=True,
            column_config=_COLUMNS,
            key="prices.table",
        )
        saved = st.form_submit_button("Save", type="primary", icon=":material/save:")
    if saved:
        _save(edited.to_dict("records"))


def _lines(book: PriceBook) -> list[dict[str, Any]]:
    return [item.model_dump(exclude={"memory_bytes"}) | {"memory_gb": item.memory_bytes / _GB} for item in book.items]


def _pools() -> None:
    rows = [
        [
            parts.escaped(pool.name),
            parts.escaped(pool.device),
            parts.escaped(pool.instance or "the pool's own price"),
            f"{pool.price_per_hour:g} {parts.escaped(pool.currency)}",
        ]
        for pool in session.remembered("pools", 5, session.client().pools)
    ]
    parts.table(["Pool", "Device", "Instance type", "Price an hour"], rows)


def _save(lines: list[dict[str, Any]]) -> None:
    try:
        wanted = PriceBook(items=tuple(_item(line) for line in lines))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        st.error(parts.plain(f"{where + ': ' if where else ''}{problem['msg']}"), icon=":material/error:")
        return
    session.client().change_prices(lambda _: wanted)
    session.forget("prices", "pools")
    st.rerun()


def _item(line: dict[str, Any]) -> InstanceType:
    """Raises ValidationError. The table lets nobody leave a cell empty."""
    return InstanceType(
        name=line["name"],
        device=line["device"],
        memory_bytes=round(line["memory_gb"] * _GB),
        price_per_hour=line["price_per_hour"],
        currency=line["currency"],
        as_of=line["as_of"].date(),
    )


page()
