"""Jobs on a real Kafka broker."""
