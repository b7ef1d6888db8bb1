"""dashboards.html."""
