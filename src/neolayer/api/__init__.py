"""HTTP: server, authentication, errors, paging, health. Knows no domain room."""
