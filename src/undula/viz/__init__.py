"""Pictures: the page, plots and figures."""
