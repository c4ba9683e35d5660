"""What goes over the wire: signatures, errors, schema, filters, routes and formats."""
