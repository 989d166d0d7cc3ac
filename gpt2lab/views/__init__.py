"""Pictures and pages from results. Each function returns a figure or a page; showing it is the caller's choice."""
