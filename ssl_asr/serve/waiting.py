"""Waiting for the first of several things."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


async def unless(work: Awaitable[Result], *ends: Awaitable[Exception]) -> Result:
    """The result of ``work``, unless one of ``ends`` is done before. What is not done is canceled.

    Args:
        work: What is waited for.
        ends: Reasons to stop waiting. Each one returns the exception that is raised.

    Raises:
        Exception: The result of the first of ``ends`` that is done before ``work``, or an error of ``work``.
    """
    task = asyncio.ensure_future(work)
    reasons = [asyncio.ensure_future(end) for end in ends]
    try:
        await asyncio.wait((task, *reasons), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise next(reason.result() for reason in reasons if reason.done())
    finally:
        for each in (task, *reasons):
            each.cancel()
        await asyncio.gather(task, *reasons, return_exceptions=True)
