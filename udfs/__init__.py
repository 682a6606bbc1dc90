"""What happens to a record: parsing, the ledger, models, learning and publishing; and thin PyFlink shells."""
