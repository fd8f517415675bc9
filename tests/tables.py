"""Reading tables that rich has printed."""

from rich.console import Console


def wide_console():
    """A console that keeps what it prints, wide enough that no cell is wrapped."""
    return Console(record=True, width=240)


def cells(console):
    """The cells of each row of all tables on a console, without heads. The console is emptied."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in console.export_text().splitlines()
        if line.startswith("│")
    ]


def heads(console):
    """The heads of the columns of all tables on a console, in order. The console keeps its text."""
    lines = [line for line in console.export_text(clear=False).splitlines() if line.startswith("┃")]
    return [[cell.strip() for cell in line.strip("┃").split("┃")] for line in lines]
