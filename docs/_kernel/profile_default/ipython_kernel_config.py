"""Figures of the chapters on the site: twice the pixels, so that they are sharp; whole, not cropped."""

c = get_config()  # noqa: F821  # pyright: ignore
c.InlineBackend.figure_formats = {"retina"}
c.InlineBackend.print_figure_kwargs = {"bbox_inches": None}
