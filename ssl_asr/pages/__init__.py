"""HTML pages that are one file: their style, tables, plots in SVG and pictures."""
