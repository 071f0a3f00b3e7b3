"""Events from Apache Kafka: what a topic holds, how it is read, and a broker of one's own to try it with."""
