"""Reports: tables, plots and HTML."""
