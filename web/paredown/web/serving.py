"""What serving an artifact costs by the price book, and what that saves at a stated traffic."""

import streamlit as st

from paredown.contracts.prices import PriceBook, Serving, savings, serving
from paredown.contracts.report import Report
from paredown.web import format as fmt
from paredown.web import parts, session


def show(report: Report) -> None:
    st.subheader("Serving it", anchor=False)
    book = session.remembered("prices", 10, session.client().prices)
    if not book.items:
        st.caption("The price book is empty: without the price of a machine, nothing is known of money.")
        st.page_link(parts.PRICES, label="**Write down prices**", icon=":material/payments:")
    tokens, loads = _traffic()
    month = savings(book, report, tokens=tokens, loads=loads)
    served = [serving(book, report.speeds.get(role)) for role in ("base", "artifact")]
    parts.table(
        ["", "Base", "Artifact"],
        [
            ["Smallest instance", *(parts.escaped(_instance(one)) for one in served)],
            [
                "A million tokens",
                *(fmt.money(one.per_million_tokens if one else None, book.currency) for one in served),
            ],
            ["A month", *(fmt.money(cost, book.currency) for cost in (month.base_cost, month.artifact_cost))],
        ],
    )
    parts.facts(
        [
            ("Saved in a month", fmt.signed_money(month.saved, month.currency)),
            ("Bytes not moved in a month", fmt.signed_size(month.bytes_saved)),
        ]
    )
    st.caption(_how(book))


def _traffic() -> tuple[float, float]:
    left, right = st.columns(2)
    tokens = left.number_input(
        "Million tokens decoded in a month", min_value=0.0, value=1000.0, step=100.0, key="serving.tokens"
    )
    loads = right.number_input(
        "Loads in a month",
        min_value=0,
        value=100,
        step=10,
        help="How often its weights are downloaded, or read by a server that starts.",
        key="serving.loads",
    )
    return 1e6 * tokens, float(loads)


def _instance(found: Serving | None) -> str:
    if found is None:
        return fmt.ABSENT
    item = found.instance
    return f"{item.name}, {fmt.size(item.memory_bytes)}, {fmt.money(item.price_per_hour, item.currency)} an hour"


def _how(book: PriceBook) -> str:
    if not book.items:
        return "Bytes are those of the weights, base less artifact, for each load."
    oldest = min(item.as_of for item in book.items)
    return (
        "The smallest machine of the price book that holds the runtime's peak memory, at the decode speed that was "
        f"measured at batch 1, doing nothing else. Prices are of {oldest.isoformat()} or later."
    )
