"""What any small HTTP service needs: nothing in here knows about stations."""
