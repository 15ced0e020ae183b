"""What every route needs of HTTP: who calls, bodies within bounds, problem details, the OpenAPI document, spans."""
