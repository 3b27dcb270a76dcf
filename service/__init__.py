"""The composition root: settings, database, embedded broker, jobs, the FastAPI application and the command line."""
