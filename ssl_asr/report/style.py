"""CSS of reports, in addition to that of pages and charts, and texts of numbers."""

import math

STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: .8rem;
  margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; break-inside: avoid; min-width: 0; }
.card .big { font-size: 1.4rem; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card .what { color: var(--note); font-size: .85rem; } .card .big small { font-size: 1rem; font-weight: 400; }
.notices { border-left: 4px solid var(--warning); background: var(--soft); padding: .4rem .9rem; margin: 1rem 0; }
.notices ul { margin: .2rem 0; padding-left: 1.1rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 0 2rem; }
.count { display: inline-block; height: .6rem; background: var(--bar); border-radius: 1px; vertical-align: baseline; }
article { border-top: 1px solid var(--line); padding: .7rem 0; }
article header { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; }
article audio { width: min(100%, 340px); height: 36px; display: block; margin: .3rem 0; }
.aligned { line-height: 1.9; margin: .2rem 0; overflow-wrap: anywhere; max-width: none; }
.aligned del, .aligned ins { padding: .08rem .25rem; border-radius: .2rem; }
.aligned del { color: var(--c1); text-decoration: line-through;
  background: color-mix(in srgb, var(--c1) 13%, transparent); }
.aligned ins { color: var(--c0); text-decoration: underline;
  background: color-mix(in srgb, var(--c0) 13%, transparent); }
.aligned .sub { white-space: nowrap; } .best td { font-weight: 650; }
tr.failed td { color: var(--note); } .swatch { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  background: var(--color); vertical-align: -.05rem; margin-right: .4rem; }
.ranking td { white-space: nowrap; } .ranking :is(td, th) { padding-right: .65rem; }
.ranking .interval { width: 130px; } .matrix-p td.n { line-height: 1.25; } .matrix-p small { color: var(--note); }
.run { border-top: 3px solid var(--line); margin-top: 2.5rem; } .run > summary { font-size: 1.2rem; font-weight: 650;
  padding: .8rem 0 .2rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0; font-size: .9rem; }
a { color: var(--c0); }
@media print { audio, nav { display: none !important; } }
"""


def percent(rate: float) -> str:
    """An error rate in percent with two decimals, without the sign.

    Example:
        >>> percent(0.0123), percent(float("nan"))
        ('1.23', '')
    """
    return "" if math.isnan(rate) else f"{100 * rate:.2f}"


def interval(low: float, high: float) -> str:
    """Bounds in percent."""
    return "" if math.isnan(low) or math.isnan(high) else f"{percent(low)} - {percent(high)}"


def count(number: float) -> str:
    """A number of parameters or other things.

    Example:
        >>> count(37_184_256), count(845)
        ('37.2 M', '845')
    """
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """A time.

    Example:
        >>> duration(412.1), duration(7300), duration(42)
        ('6 min 52 s', '2 h 1 min', '42 s')
    """
    hours, rest = divmod(round(seconds), 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
