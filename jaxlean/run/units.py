"""Numbers as people read them: bytes, dollars, seconds, counts. What is not known is "-"."""

import math


def _unknown(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def show_bytes(value: float | None) -> str:
    """Bytes in powers of 1024.

    >>> show_bytes(84_942_979_072), show_bytes(512), show_bytes(None)
    ('79.1 GiB', '512 B', '-')
    """
    if value is None or _unknown(value):
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def show_usd(value: float | None) -> str:
    """Dollars: cents from a dollar up, two significant digits below.

    >>> show_usd(1234.5), show_usd(0.00118), show_usd(0.25), show_usd(0.0), show_usd(None)
    ('$1,234.50', '$0.0012', '$0.25', '$0.00', '-')
    """
    if value is None or _unknown(value):
        return "-"
    if value >= 0.995 or value == 0:
        return f"${value:,.2f}"
    digits = max(2, 1 - int(f"{value:.1e}".partition("e")[2]))
    # Beyond a millionth of a dollar digits say nothing.
    return f"${value:.{digits}f}" if digits <= 6 else "<$0.000001"


def show_energy(kwh: float | None) -> str:
    """An amount of energy.

    >>> show_energy(12.345), show_energy(0.0123), show_energy(0.000129), show_energy(None)
    ('12.3 kWh', '12.3 Wh', '0.129 Wh', '-')
    """
    if kwh is None or _unknown(kwh):
        return "-"
    return f"{kwh:,.3g} kWh" if kwh >= 1 else f"{kwh * 1000:.3g} Wh"


def show_seconds(value: float | None) -> str:
    """A length of time.

    >>> show_seconds(0.25), show_seconds(42.42), show_seconds(150), show_seconds(7384), show_seconds(None)
    ('0.25 s', '42.4 s', '2 min 30 s', '2 h 03 min', '-')
    """
    if value is None or _unknown(value):
        return "-"
    if value < 59.95:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show_count(value: float | None) -> str:
    """A count with thousands separated.

    >>> show_count(1_048_576), show_count(None)
    ('1,048,576', '-')
    """
    return "-" if value is None or _unknown(value) else f"{value:,.0f}"


def show_number(value: float | None, digits: int = 4) -> str:
    """A plain number.

    >>> show_number(1.23456), show_number(float("nan")), show_number(None)
    ('1.2346', 'nan', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def show_percent(share: float | None) -> str:
    """A share from 0 to 1 as per cent.

    >>> show_percent(0.9375), show_percent(0.00012), show_percent(None)
    ('93.8 %', '0.012 %', '-')
    """
    if share is None or _unknown(share):
        return "-"
    percent = 100 * share
    return f"{percent:.2g} %" if 0 < percent < 1 else f"{percent:.1f} %"
