"""PostgreSQL: pool, named SQL, migrations, change notices."""
