"""Parts for any small HTTP service. They know about requests and databases, not about stations."""
